// A call of HashiCorp's go-plugin over gRPC, which nobody records: the health check that go-plugin itself registers.
//
// Started by hand it starts itself as its plugin and prints the plugin's pid; then it answers each line of "COUNT DEPTH"
// with the seconds that COUNT calls took, DEPTH of them at a time. It ends, and its plugin, at the end of its input.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io/ioutil"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
)

var handshake = plugin.HandshakeConfig{ProtocolVersion: 1, MagicCookieKey: "REFERENCE_PLUGIN", MagicCookieValue: "calls"}

// nothing is a plugin without a service of its own.
type nothing struct{ plugin.Plugin }

func (nothing) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return nil }

func (nothing) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, connection *grpc.ClientConn) (interface{}, error) {
	return connection, nil
}

func main() {
	plugins := map[string]plugin.Plugin{"nothing": nothing{}}
	if os.Getenv(handshake.MagicCookieKey) != "" {
		plugin.Serve(&plugin.ServeConfig{HandshakeConfig: handshake, Plugins: plugins, GRPCServer: plugin.DefaultGRPCServer})
		return
	}
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  handshake,
		Plugins:          plugins,
		Cmd:              exec.Command(os.Args[0]),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		Logger:           hclog.New(&hclog.LoggerOptions{Output: ioutil.Discard}),
	})
	defer client.Kill()
	protocol, err := client.Client()
	if err != nil {
		panic(err)
	}
	connection, err := protocol.Dispense("nothing")
	if err != nil {
		panic(err)
	}
	health := grpc_health_v1.NewHealthClient(connection.(*grpc.ClientConn))
	fmt.Println(client.ReattachConfig().Pid)
	asked := bufio.NewScanner(os.Stdin)
	for asked.Scan() {
		var count, depth int
		if _, err := fmt.Sscan(asked.Text(), &count, &depth); err != nil {
			panic(err)
		}
		fmt.Printf("%.9f\n", timed(health, count, depth).Seconds())
	}
}

func timed(health grpc_health_v1.HealthClient, count, depth int) time.Duration {
	var callers sync.WaitGroup
	began := time.Now()
	for caller := 0; caller < depth; caller++ {
		callers.Add(1)
		go func() {
			defer callers.Done()
			for call := 0; call < count/depth; call++ {
				if _, err := health.Check(context.Background(), &grpc_health_v1.HealthCheckRequest{Service: plugin.GRPCServiceName}); err != nil {
					panic(err)
				}
			}
		}()
	}
	callers.Wait()
	return time.Since(began)
}
