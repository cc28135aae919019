// Asks for tokens with azidentity's WorkloadIdentityCredential through a token proxy. Requests and answers are those of
// ../../python/workload.py.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

type request struct {
	Scope     string `json:"scope"`
	ClientID  string `json:"client_id"`
	TenantID  string `json:"tenant_id"`
	TokenFile string `json:"token_file"`
	Claims    string `json:"claims"`
	CAE       bool   `json:"cae"`
	New       bool   `json:"new"`
}

type identity struct{ clientID, tenantID, tokenFile string }

var credentials = map[identity]azcore.TokenCredential{}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	answers := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		answer := map[string]any{}
		token, err := ask(lines.Bytes())
		if err == nil {
			answer["token"], answer["expires_on"] = token.Token, token.ExpiresOn.Unix()
		} else {
			answer["error"], answer["message"] = fmt.Sprintf("%T", err), err.Error()
		}
		_ = answers.Encode(answer)
	}
}

func ask(line []byte) (azcore.AccessToken, error) {
	asked := request{Scope: "https://vault.azure.net/.default"}
	if err := json.Unmarshal(line, &asked); err != nil {
		return azcore.AccessToken{}, err
	}
	credential, err := credentialFor(asked)
	if err != nil {
		return azcore.AccessToken{}, err
	}
	options := policy.TokenRequestOptions{Scopes: []string{asked.Scope}, Claims: asked.Claims, EnableCAE: asked.CAE}
	return credential.GetToken(context.Background(), options)
}

func credentialFor(asked request) (azcore.TokenCredential, error) {
	key := identity{asked.ClientID, asked.TenantID, asked.TokenFile}
	if credential, there := credentials[key]; there && !asked.New {
		return credential, nil
	}
	credential, err := azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
		ClientID: asked.ClientID, TenantID: asked.TenantID, TokenFilePath: asked.TokenFile, EnableAzureProxy: true,
	})
	if err == nil {
		credentials[key] = credential
	}
	return credential, err
}
