// Every program of a Kubernetes control plane and node, in one: the name it is started under says which.
//
// One program, because six would link the same libraries six times: this takes minutes less to build and a gigabyte
// less of disk. It decides nothing; podidentity's lab writes its flags and starts it. Two names are not Kubernetes's
// own: `etcd CLIENT-URL FOLDER` is an etcd of one member that does not sync its disk (the cluster is thrown away),
// and `pause` holds a pod's namespaces.
package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

var programs = map[string]func() *cobra.Command{
	"etcd":                    etcd,
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllers.NewControllerManagerCommand,
	"kube-proxy":              proxy.NewProxyCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
}

func main() {
	name := filepath.Base(os.Args[0])
	command, known := programs[name]
	if !known {
		names := make([]string, 0, len(programs))
		for each := range programs {
			names = append(names, each)
		}
		slices.Sort(names)
		fmt.Fprintf(os.Stderr, "%s: start this program through a link named one of %v\n", name, names)
		os.Exit(2)
	}
	os.Exit(cli.Run(command()))
}

func etcd() *cobra.Command {
	return &cobra.Command{
		Use:  "etcd CLIENT-URL FOLDER",
		Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, arguments []string) error {
			clients, err := url.Parse(arguments[0])
			if err != nil {
				return err
			}
			config := embed.NewConfig()
			config.Dir = arguments[1]
			config.ListenClientUrls = []url.URL{*clients}
			config.AdvertiseClientUrls = []url.URL{*clients}
			config.ListenPeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
			config.LogLevel = "warn"
			config.UnsafeNoFsync = true
			server, err := embed.StartEtcd(config)
			if err != nil {
				return err
			}
			return <-server.Err()
		},
	}
}
