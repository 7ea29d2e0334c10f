// A vCenter to test against: govmomi's simulator, with console tickets added by an overlay (ticket.go).
//
// Prints what a test waits for, one line each: "vm ID PATH", "certificate SHA256", "listening ADDRESS", "call METHOD OBJECT", "ticket KIND VM".
// GET /mark/N prints "mark N": whoever reads that has read every call before it.
package main

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

var (
	method = regexp.MustCompile(`<(?:\w+:)?Body[^>]*>\s*<(?:\w+:)?(\w+)`)
	object = regexp.MustCompile(`<_this[^>]*>([^<]*)<`)
)

// recorder says what was asked before it is answered, and answers as late as a far vCenter does.
func recorder(next http.Handler, latency time.Duration, quiet bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/mark/") {
			// Everything before this was printed.
			fmt.Println("mark", strings.TrimPrefix(r.URL.Path, "/mark/"))
			w.WriteHeader(http.StatusNoContent)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		name, this := "-", "-"
		if found := method.FindSubmatch(body); found != nil {
			name = string(found[1])
		}
		if found := object.FindSubmatch(body); found != nil {
			this = string(found[1])
		}
		if !quiet {
			fmt.Println("call", name, this)
		}
		time.Sleep(latency)
		next.ServeHTTP(w, r)
	})
}

// certificate makes one as a vCenter has it; the simulator's own is too short a key for today's clients.
func certificate() tls.Certificate {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		log.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "vcenter.example"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		log.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func main() {
	listen := flag.String("l", "127.0.0.1:0", "address")
	machines := flag.Int("vm", 2, "how many machines")
	user := flag.String("username", "user", "the account")
	password := flag.String("password", "pass", "its password")
	port := flag.Int("console-port", 902, "port of consoles")
	latency := flag.Duration("latency", 0, "pause before every answer")
	flag.StringVar(&simulator.Console.Host, "console-host", "127.0.0.1", "host of consoles")
	flag.StringVar(&simulator.Console.Thumb, "console-thumbprint", "", "thumbprint of that host")
	flag.StringVar(&simulator.Console.Path, "console-path", "", "configuration file in tickets, in place of the machine's own")
	quiet := flag.Bool("quiet", false, "print no calls")
	flag.StringVar(&simulator.Console.Ticket, "console-ticket", "", "what every ticket says, in place of a number of its own")
	off := flag.Bool("off", false, "machines are powered off")
	flag.BoolVar(&simulator.Console.Old, "old", false, "no AcquireTicket, as before vSphere 4.1")
	flag.Parse()
	simulator.Console.Port = int32(*port)
	if !*quiet {
		simulator.Console.Issued = func(kind, vm string) { fmt.Println("ticket", kind, vm) }
	}
	model := simulator.VPX()
	model.Machine = *machines
	model.Autostart = !*off
	if err := model.Create(); err != nil {
		log.Fatal(err)
	}
	for _, entity := range simulator.Map.All("VirtualMachine") {
		vm := entity.(*simulator.VirtualMachine)
		// What the model leaves empty must hold something: strict clients refuse an empty enumeration.
		vm.Runtime.FaultToleranceState = types.VirtualMachineFaultToleranceStateNotConfigured
		vm.Summary.Runtime.FaultToleranceState = types.VirtualMachineFaultToleranceStateNotConfigured
		fmt.Println("vm", vm.Self.Value, vm.Config.Files.VmPathName)
	}
	model.Service.RegisterEndpoints = true
	model.Service.Listen = &url.URL{Host: *listen, User: url.UserPassword(*user, *password)}
	shown := certificate()
	model.Service.TLS = &tls.Config{Certificates: []tls.Certificate{shown}}
	fmt.Printf("certificate %x\n", sha256.Sum256(shown.Certificate[0]))
	server := model.Service.NewServer()
	server.Config.Handler = recorder(server.Config.Handler, *latency, *quiet)
	fmt.Println("listening", server.URL.Host)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	<-stop
}
