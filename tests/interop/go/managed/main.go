// Asks for a token with azidentity's ManagedIdentityCredential and DefaultAzureCredential: see ../../managed/managed.py.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

func answer(credential azcore.TokenCredential, err error) map[string]string {
	if err == nil {
		options := policy.TokenRequestOptions{Scopes: []string{"https://vault.azure.net/.default"}}
		var token azcore.AccessToken
		if token, err = credential.GetToken(context.Background(), options); err == nil {
			return map[string]string{"token": token.Token}
		}
	}
	return map[string]string{"error": fmt.Sprintf("%T", err), "message": err.Error()}
}

func main() {
	options := &azidentity.ManagedIdentityCredentialOptions{}
	if selector := os.Getenv("SELECTOR"); selector != "" {
		options.ID = azidentity.ClientID(selector)
	}
	managed, err := azidentity.NewManagedIdentityCredential(options)
	first := answer(managed, err)
	chain, err := azidentity.NewDefaultAzureCredential(nil)
	_ = json.NewEncoder(os.Stdout).Encode(map[string]any{"managed": first, "default": answer(chain, err)})
}
