// The walk-through's sample in Go: a web server that shows one secret of a vault at /keyvault, with the client
// libraries of that time. With -once it reads the secret once and says how that went as one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/services/keyvault/2016-10-01/keyvault"
	"github.com/Azure/azure-sdk-for-go/services/keyvault/auth"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "-once" {
		once()
		return
	}
	http.HandleFunc("/keyvault", show)
	fmt.Println("listening on port 8080")
	if err := http.ListenAndServe(":8080", nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func show(response http.ResponseWriter, request *http.Request) {
	value, err := read(request.Context())
	if err != nil {
		http.Error(response, err.Error(), http.StatusBadGateway)
		return
	}
	fmt.Fprint(response, value)
}

func read(ctx context.Context) (string, error) {
	keyClient := keyvault.New()
	authorizer, err := auth.NewAuthorizerFromEnvironment()
	if err != nil {
		return "", err
	}
	keyClient.Authorizer = authorizer
	vault := "https://" + os.Getenv("AZURE_KEYVAULT_NAME") + ".vault.azure.net"
	name, version := os.Getenv("AZURE_KEYVAULT_SECRET_NAME"), os.Getenv("AZURE_KEYVAULT_SECRET_VERSION")
	secret, err := keyClient.GetSecret(ctx, vault, name, version)
	if err != nil {
		return "", err
	}
	return *secret.Value, nil
}

func once() {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	value, err := read(ctx)
	said := map[string]any{"ok": err == nil, "secret": value, "versions": versions()}
	if err != nil {
		said["type"], said["message"] = chain(err), err.Error()
	}
	_ = json.NewEncoder(os.Stdout).Encode(said)
}

// chain names the types of an error and of what it wraps, outermost first.
func chain(err error) string {
	var types []string
	for err != nil {
		types = append(types, fmt.Sprintf("%T", err))
		switch wrapper := err.(type) {
		case interface{ Unwrap() error }:
			err = wrapper.Unwrap()
		default:
			err = nil
		}
	}
	return strings.Join(types, " ")
}

func versions() map[string]string {
	found := map[string]string{}
	info, _ := debug.ReadBuildInfo()
	for _, module := range info.Deps {
		switch module.Path {
		case "github.com/Azure/azure-sdk-for-go", "github.com/Azure/go-autorest/autorest/azure/auth":
			found[module.Path] = module.Version
		}
	}
	return found
}
