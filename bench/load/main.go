// Load asks one HTTP/1.1 server the same question over and over on keep-alive connections, as cheaply as Go can, so
// that the server is what is measured. It prints one JSON line. Used by bench/nmi.py and the load tests.
//
// Each connection sends the head from -head and reads the answer to its end by Content-Length. With -expect each body
// must contain the text given for its source: any other is a wrong answer. With -persist a connection that breaks is
// opened again, as clients do, and the longest time without an answer is told. With -unique each head carries a number of its own in place of the 32 zeros in it, as SDKs put a new request ID into each. With -first=N
// every connection sends N requests at once and reads their answers, all connections at the same moment. With -tls the
// connections are TLS to a server on this machine, whose certificate is not looked at; with -reopen each request has a
// connection of its own, and TLS does its whole handshake. The head may have a body behind it.
package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

var zeros = []byte("00000000000000000000000000000000")

type client struct {
	dial     func() (net.Conn, error)
	reader   *bufio.Reader
	conn     net.Conn
	head     []byte
	number   []byte // the part of head that is rewritten, nil when nothing is
	expected []byte
	body     []byte
	micros   []uint32
	statuses map[int]int
	wrong    string
	failed   string
	broken   int
	reopen   bool
	last     time.Time
	gap      time.Duration
}

type result struct {
	Requests int            `json:"requests"`
	Seconds  float64        `json:"seconds"`
	P50      float64        `json:"p50_ms"`
	P99      float64        `json:"p99_ms"`
	Statuses map[string]int `json:"statuses"`
	Failures []string       `json:"failures"`
	Wrong    []string       `json:"wrong"`
	Broken   int            `json:"broken"`
	Gap      float64        `json:"longest_gap_ms"`
}

func main() {
	address := flag.String("address", "", "HOST:PORT of the server")
	headFile := flag.String("head", "", "file with the request head, its empty line included")
	sources := flag.String("sources", "", "local addresses to connect from, separated by commas, used in turn")
	connections := flag.Int("connections", 32, "how many connections")
	seconds := flag.Float64("seconds", 2, "how long")
	unique := flag.Bool("unique", false, "number the heads")
	expect := flag.String("expect", "", "what each source's body must contain, separated by commas like the sources")
	secure := flag.Bool("tls", false, "speak TLS")
	reopen := flag.Bool("reopen", false, "a new connection for each request")
	persist := flag.Bool("persist", false, "go on after a connection breaks")
	first := flag.Int("first", 0, "so many requests on each connection, all at once, in place of a time")
	flag.Parse()
	head, err := os.ReadFile(*headFile)
	check(err)
	clients := make([]*client, *connections)
	for i := range clients {
		clients[i] = connect(*address, strings.Split(*sources, ","), i, head, *unique, *secure)
		clients[i].reopen = *reopen
		if *expect != "" {
			texts := strings.Split(*expect, ",")
			clients[i].expected = []byte(texts[i%len(texts)])
		}
	}
	started, ended := run(clients, time.Duration(*seconds*float64(time.Second)), *first, *persist)
	check(json.NewEncoder(os.Stdout).Encode(summary(clients, ended.Sub(started))))
}

func connect(address string, sources []string, i int, head []byte, unique, secure bool) *client {
	dialer := net.Dialer{Timeout: 10 * time.Second}
	if source := sources[i%len(sources)]; source != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(source)}
	}
	made := &client{head: bytes.Clone(head), statuses: map[int]int{}}
	made.dial = func() (net.Conn, error) { return dialer.Dial("tcp", address) }
	if secure {
		trust := &tls.Config{InsecureSkipVerify: true}
		made.dial = func() (net.Conn, error) { return tls.DialWithDialer(&dialer, "tcp", address, trust) }
	}
	check(made.open())
	if unique {
		at := bytes.Index(made.head, zeros)
		made.number = made.head[at : at+len(zeros)]
		copy(made.number, fmt.Sprintf("%08x%08x", os.Getpid(), i))
	}
	return made
}

func (c *client) open() (err error) {
	if c.conn, err = c.dial(); err == nil {
		c.reader = bufio.NewReader(c.conn)
	}
	return err
}

func run(clients []*client, long time.Duration, first int, persist bool) (time.Time, time.Time) {
	var all sync.WaitGroup
	start := make(chan struct{})
	var deadline time.Time
	for _, one := range clients {
		all.Go(func() {
			<-start
			if first > 0 {
				one.burst(first)
				return
			}
			one.last = time.Now()
			for number := uint64(1); time.Now().Before(deadline); number++ {
				if !one.ask(number) && !(persist && one.again(deadline)) {
					return
				}
			}
		})
	}
	started := time.Now()
	deadline = started.Add(long)
	close(start)
	all.Wait()
	return started, time.Now()
}

// ask sends one request and reads its answer; false ends the client.
func (c *client) ask(number uint64) bool {
	if c.number != nil {
		digits := strconv.AppendUint(nil, number, 16)
		copy(c.number[len(c.number)-len(digits):], digits)
	}
	began := time.Now()
	if c.reopen {
		c.conn.Close()
		if err := c.open(); err != nil {
			c.failed = err.Error()
			return false
		}
	}
	if _, err := c.conn.Write(c.head); err != nil {
		c.failed = err.Error()
		return false
	}
	return c.read(began)
}

// again opens a new connection in place of one that broke; false when the time is up.
func (c *client) again(deadline time.Time) bool {
	c.broken++
	c.failed = ""
	for c.conn.Close(); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if c.open() == nil {
			return true
		}
	}
	return false
}

// burst sends several requests without waiting for answers in between.
func (c *client) burst(count int) {
	began := time.Now()
	if _, err := c.conn.Write(bytes.Repeat(c.head, count)); err != nil {
		c.failed = err.Error()
		return
	}
	for range count {
		if !c.read(began) {
			return
		}
	}
}

func (c *client) read(began time.Time) bool {
	status, length, err := c.readHead()
	if err == nil {
		err = c.readBody(length)
	}
	if err != nil {
		c.failed = err.Error()
		return false
	}
	now := time.Now()
	c.statuses[status]++
	c.micros = append(c.micros, uint32(now.Sub(began).Microseconds()))
	if status == 200 && c.expected != nil {
		if !bytes.Contains(c.body, c.expected) {
			c.wrong = fmt.Sprintf("%s was expected, this came: %.200s", c.expected, c.body)
		}
		c.gap = max(c.gap, now.Sub(c.last))
		c.last = now
	}
	return true
}

func (c *client) readBody(length int) error {
	if c.expected == nil {
		_, err := c.reader.Discard(length)
		return err
	}
	c.body = slices.Grow(c.body[:0], length)[:length]
	_, err := io.ReadFull(c.reader, c.body)
	return err
}

func (c *client) readHead() (status int, length int, err error) {
	for first := true; ; first = false {
		line, err := c.reader.ReadSlice('\n')
		if err != nil {
			return 0, 0, err
		}
		if first {
			status, err = strconv.Atoi(string(line[9:12]))
			if err != nil {
				return 0, 0, err
			}
		}
		if len(line) == 2 {
			return status, length, nil
		}
		if name := "Content-Length: "; len(line) > len(name) && string(line[:len(name)]) == name {
			length, err = strconv.Atoi(string(line[len(name) : len(line)-2]))
			if err != nil {
				return 0, 0, err
			}
		}
	}
}

func summary(clients []*client, took time.Duration) result {
	told := result{Seconds: took.Seconds(), Statuses: map[string]int{}, Failures: []string{}, Wrong: []string{}}
	var micros []uint32
	for _, one := range clients {
		micros = append(micros, one.micros...)
		for status, count := range one.statuses {
			told.Statuses[strconv.Itoa(status)] += count
		}
		if one.failed != "" {
			told.Failures = append(told.Failures, one.failed)
		}
		if one.wrong != "" {
			told.Wrong = append(told.Wrong, one.wrong)
		}
		told.Broken += one.broken
		told.Gap = max(told.Gap, one.gap.Seconds()*1000)
	}
	slices.Sort(micros)
	told.Requests = len(micros)
	if len(micros) > 0 {
		told.P50 = float64(micros[len(micros)/2]) / 1000
		told.P99 = float64(micros[len(micros)*99/100]) / 1000
	}
	return told
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}
