// Reference serves one body with Go's net/http: what the cost of each request is compared with by bench/nmi.py and
// bench/broker.py. With -certificate and -key it serves TLS; the body of a request is read. With -admission it is an
// admission webhook that lets everything pass, for bench/webhook.py.
package main

import (
	"encoding/json"
	"flag"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
)

func main() {
	address := flag.String("address", "127.0.0.1:0", "HOST:PORT to listen on")
	bodyFile := flag.String("body", "", "file with the body")
	certificate := flag.String("certificate", "", "PEM file with the certificate, for TLS")
	key := flag.String("key", "", "PEM file with its key")
	admission := flag.Bool("admission", false, "allow whatever is reviewed")
	flag.Parse()
	if *admission {
		log.Fatal(http.ListenAndServeTLS(*address, *certificate, *key, http.HandlerFunc(allow)))
	}
	body, err := os.ReadFile(*bodyFile)
	if err != nil {
		log.Fatal(err)
	}
	length := strconv.Itoa(len(body))
	answer := func(writer http.ResponseWriter, request *http.Request) {
		_, _ = io.Copy(io.Discard, request.Body)
		writer.Header().Set("Content-Type", "application/json")
		writer.Header().Set("Content-Length", length)
		_, _ = writer.Write(body)
	}
	if *certificate != "" {
		log.Fatal(http.ListenAndServeTLS(*address, *certificate, *key, http.HandlerFunc(answer)))
	}
	log.Fatal(http.ListenAndServe(*address, http.HandlerFunc(answer)))
}

type review struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Request    *request  `json:"request,omitempty"`
	Response   *response `json:"response,omitempty"`
}

type request struct {
	UID string `json:"uid"`
}

type response struct {
	UID     string `json:"uid"`
	Allowed bool   `json:"allowed"`
}

func allow(writer http.ResponseWriter, message *http.Request) {
	var question review
	if err := json.NewDecoder(message.Body).Decode(&question); err != nil || question.Request == nil {
		http.Error(writer, "this is no AdmissionReview", http.StatusBadRequest)
		return
	}
	answer := review{APIVersion: question.APIVersion, Kind: question.Kind}
	answer.Response = &response{UID: question.Request.UID, Allowed: true}
	writer.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(writer).Encode(answer)
}
