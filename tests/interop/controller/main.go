// Command controller keeps a Deployment for each labelled ConfigMap of a namespace, as controllers on client-go do.
//
// A ConfigMap's `replicas` is the Deployment's size; an annotation of the ConfigMap has how many replicas are ready.
// Informers feed a work queue; one of several candidates leads by a Lease and works. Everything is sent as protobuf.
// SIGTERM ends it: it gives up the Lease, and prints what it did as one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/util/workqueue"
)

const (
	label      = "example.com/controller"
	annotation = "example.com/ready"
	lease      = "controller"
)

// report is what the program did; its lists have each entry once, in order.
type report struct {
	mutex     sync.Mutex
	Led       bool     `json:"led"`
	Created   []string `json:"created"`
	Updated   []string `json:"updated"`
	Annotated []string `json:"annotated"`
	Sent      []string `json:"sent"`
}

func (r *report) note(list *[]string, entry string) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if place, present := slices.BinarySearch(*list, entry); !present {
		*list = slices.Insert(*list, place, entry)
	}
}

// wire notes the content types of the bodies that a client sends.
type wire struct {
	next   http.RoundTripper
	report *report
}

func (w wire) RoundTrip(request *http.Request) (*http.Response, error) {
	if request.Body != nil && request.Body != http.NoBody {
		w.report.note(&w.report.Sent, request.Header.Get("Content-Type"))
	}
	return w.next.RoundTrip(request)
}

type controller struct {
	client      kubernetes.Interface
	configMaps  corelisters.ConfigMapLister
	deployments listers.DeploymentLister
	queue       workqueue.TypedRateLimitingInterface[cache.ObjectName]
	image       string
	report      *report
}

func main() {
	namespace := flag.String("namespace", "default", "where the objects and the Lease are")
	identity := flag.String("identity", "", "this candidate's name in the Lease")
	image := flag.String("image", "", "of the Deployments' container")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	done := &report{Created: []string{}, Updated: []string{}, Annotated: []string{}, Sent: []string{}}
	if err := run(ctx, *namespace, *identity, *image, done); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	line, _ := json.Marshal(done)
	fmt.Println(string(line))
}

// run takes part in the election until `ctx` ends; a lost Lease is an error.
func run(ctx context.Context, namespace, identity, image string, done *report) error {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return err
	}
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	config.QPS, config.Burst = 50, 100 // the election alone would take most of the usual 5 a second
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return wire{next, done} })
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(config, "controller"))
	if err != nil {
		return err
	}
	leading := make(chan context.Context, 1)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  meta.ObjectMeta{Namespace: namespace, Name: lease},
			Client:     client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
		},
		// Nobody is to lose the Lease because the machine is busy; who gives it up is followed at once.
		LeaseDuration:   120 * time.Second,
		RenewDeadline:   90 * time.Second,
		RetryPeriod:     300 * time.Millisecond,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) { leading <- ctx },
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	// The election outlasts the work: the Lease is given up when nothing is done any more.
	election, endElection := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); elector.Run(election) }()
	select {
	case term := <-leading:
		work, cancel := context.WithCancel(term)
		context.AfterFunc(ctx, cancel)
		err = lead(work, client, namespace, image, done)
		cancel()
	case <-ctx.Done():
	}
	lost := ctx.Err() == nil && err == nil
	endElection()
	<-ended
	if lost {
		return fmt.Errorf("%s lost the Lease", identity)
	}
	return err
}

// lead does the work until `ctx` ends.
func lead(ctx context.Context, client kubernetes.Interface, namespace, image string, done *report) error {
	done.Led = true
	labelled := func(options *meta.ListOptions) { options.LabelSelector = label }
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0,
		informers.WithNamespace(namespace), informers.WithTweakListOptions(labelled))
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[cache.ObjectName](10*time.Millisecond, time.Second)
	queue := workqueue.NewTypedRateLimitingQueue[cache.ObjectName](limiter)
	c := &controller{
		client:      client,
		configMaps:  factory.Core().V1().ConfigMaps().Lister(),
		deployments: factory.Apps().V1().Deployments().Lister(),
		queue:       queue, image: image, report: done,
	}
	enqueue := func(object any) {
		if name, err := cache.DeletionHandlingObjectToName(object); err == nil {
			queue.Add(name)
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc: enqueue, UpdateFunc: func(_, object any) { enqueue(object) }, DeleteFunc: enqueue,
	}
	// A Deployment has the name of its ConfigMap.
	for _, informer := range []cache.SharedIndexInformer{
		factory.Core().V1().ConfigMaps().Informer(), factory.Apps().V1().Deployments().Informer(),
	} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	for kind, synced := range factory.WaitForCacheSync(ctx.Done()) {
		if !synced && ctx.Err() == nil {
			return fmt.Errorf("the cache of %s was never filled", kind)
		}
	}
	context.AfterFunc(ctx, queue.ShutDown)
	var workers sync.WaitGroup
	for range 2 {
		workers.Add(1)
		go func() { defer workers.Done(); c.work(ctx) }()
	}
	workers.Wait()
	return nil
}

// work takes names off the queue until it is shut down.
func (c *controller) work(ctx context.Context) {
	for {
		name, shutdown := c.queue.Get()
		if shutdown {
			return
		}
		if err := c.reconcile(ctx, name); err != nil {
			fmt.Fprintln(os.Stderr, name, err) // a stale cache, most often: it is tried again
			c.queue.AddRateLimited(name)
		} else {
			c.queue.Forget(name)
		}
		c.queue.Done(name)
	}
}

// reconcile makes the Deployment what its ConfigMap says, and the annotation what the Deployment says.
func (c *controller) reconcile(ctx context.Context, name cache.ObjectName) error {
	configMap, err := c.configMaps.ConfigMaps(name.Namespace).Get(name.Name)
	if errors.IsNotFound(err) {
		return nil // its Deployment goes with its owner
	} else if err != nil {
		return err
	}
	size, err := strconv.ParseInt(configMap.Data["replicas"], 10, 32)
	if err != nil {
		return err
	}
	replicas := int32(size)
	deployments := c.client.AppsV1().Deployments(name.Namespace)
	deployment, err := c.deployments.Deployments(name.Namespace).Get(name.Name)
	if errors.IsNotFound(err) {
		if deployment, err = deployments.Create(ctx, c.build(configMap, replicas), meta.CreateOptions{}); err == nil {
			c.report.note(&c.report.Created, name.Name)
		}
	} else if err == nil && (deployment.Spec.Replicas == nil || *deployment.Spec.Replicas != replicas) {
		deployment = deployment.DeepCopy() // the cache's own must not change
		deployment.Spec.Replicas = &replicas
		if deployment, err = deployments.Update(ctx, deployment, meta.UpdateOptions{}); err == nil {
			c.report.note(&c.report.Updated, name.Name)
		}
	}
	if err != nil {
		return err
	}
	return c.annotate(ctx, configMap, strconv.Itoa(int(deployment.Status.ReadyReplicas)))
}

func (c *controller) annotate(ctx context.Context, configMap *core.ConfigMap, ready string) error {
	if configMap.Annotations[annotation] == ready {
		return nil
	}
	configMap = configMap.DeepCopy()
	meta.SetMetaDataAnnotation(&configMap.ObjectMeta, annotation, ready)
	_, err := c.client.CoreV1().ConfigMaps(configMap.Namespace).Update(ctx, configMap, meta.UpdateOptions{})
	if err == nil {
		c.report.note(&c.report.Annotated, configMap.Name)
	}
	return err
}

// build returns a ConfigMap's Deployment, which is owned by it.
func (c *controller) build(owner *core.ConfigMap, replicas int32) *apps.Deployment {
	labels := map[string]string{label: owner.Name}
	grace := int64(0)
	return &apps.Deployment{
		ObjectMeta: meta.ObjectMeta{
			Name: owner.Name, Namespace: owner.Namespace, Labels: labels,
			OwnerReferences: []meta.OwnerReference{
				*meta.NewControllerRef(owner, core.SchemeGroupVersion.WithKind("ConfigMap")),
			},
		},
		Spec: apps.DeploymentSpec{
			Replicas: &replicas,
			Selector: &meta.LabelSelector{MatchLabels: labels},
			Template: core.PodTemplateSpec{
				ObjectMeta: meta.ObjectMeta{Labels: labels},
				Spec: core.PodSpec{
					TerminationGracePeriodSeconds: &grace,
					Containers: []core.Container{{
						Name: "main", Image: c.image, Command: []string{"sleep", "infinity"},
					}},
				},
			},
		},
	}
}
