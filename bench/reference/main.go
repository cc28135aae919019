// Reference serves one body with Go's net/http: what NMI's cost for each request is compared with by bench/nmi.py.
package main

import (
	"flag"
	"log"
	"net/http"
	"os"
	"strconv"
)

func main() {
	address := flag.String("address", "127.0.0.1:0", "HOST:PORT to listen on")
	bodyFile := flag.String("body", "", "file with the body")
	flag.Parse()
	body, err := os.ReadFile(*bodyFile)
	if err != nil {
		log.Fatal(err)
	}
	length := strconv.Itoa(len(body))
	answer := func(writer http.ResponseWriter, _ *http.Request) {
		writer.Header().Set("Content-Type", "application/json")
		writer.Header().Set("Content-Length", length)
		_, _ = writer.Write(body)
	}
	log.Fatal(http.ListenAndServe(*address, http.HandlerFunc(answer)))
}
