// Reads one secret with azidentity and azsecrets, and says how that went as one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	value, err := read(ctx)
	said := map[string]any{"ok": err == nil, "secret": value, "versions": versions()}
	if err != nil {
		said["type"], said["message"] = fmt.Sprintf("%T", err), err.Error()
	}
	_ = json.NewEncoder(os.Stdout).Encode(said)
}

func read(ctx context.Context) (string, error) {
	credential, err := azidentity.NewManagedIdentityCredential(nil)
	if err != nil {
		return "", err
	}
	client, err := azsecrets.NewClient("https://"+os.Getenv("AZURE_KEYVAULT_NAME")+".vault.azure.net", credential, nil)
	if err != nil {
		return "", err
	}
	secret, err := client.GetSecret(ctx, os.Getenv("AZURE_KEYVAULT_SECRET_NAME"), "", nil)
	if err != nil {
		return "", err
	}
	return *secret.Value, nil
}

func versions() map[string]string {
	found := map[string]string{}
	info, _ := debug.ReadBuildInfo()
	for _, module := range info.Deps {
		switch module.Path {
		case "github.com/Azure/azure-sdk-for-go/sdk/azidentity", "github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets":
			found[module.Path] = module.Version
		}
	}
	return found
}
