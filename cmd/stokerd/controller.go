package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"stoker.dev"
	"stoker.dev/internal/control"
	"stoker.dev/workflows"
)

type controllerFlags struct {
	sharedFlags
	temporal, namespace, cluster, dir, socket, listen string
	returnWindow, grace, collectAfter                 time.Duration
	apiKeyFile, temporalName                          string
	temporalTLS                                       tlsFiles
	secure                                            bool
}

func controllerCommand() *cobra.Command {
	f := controllerFlags{}
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "the API that users call, and Temporal's workflows; any number of them",
		Example: `  stokerd controller --temporal temporal:7233 --redis redis:6379 --store /shared/stoker \
      --listen 10.0.0.1:7071 --token-file /etc/stoker/tokens`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runController(cmd, &f) },
	}
	cmd.Flags().StringVar(&f.temporal, "temporal", "127.0.0.1:7233", "host:port of Temporal")
	cmd.Flags().StringVar(&f.namespace, "namespace", "default", "namespace in Temporal")
	cmd.Flags().BoolVar(&f.secure, "temporal-tls", false, "speak TLS to Temporal; on by itself with any other --temporal-tls-… and with an API key")
	f.temporalTLS.add(cmd.Flags(), "temporal", "Temporal")
	cmd.Flags().StringVar(&f.temporalName, "temporal-tls-name", "", "name in Temporal's certificate (default the host of --temporal)")
	cmd.Flags().StringVar(&f.apiKeyFile, "temporal-api-key-file", "", "file with the API key for Temporal, read again for each request (or the key itself in STOKER_TEMPORAL_API_KEY)")
	cmd.Flags().StringVar(&f.cluster, "cluster", "default", "name of this cluster: part of all workflow ids and of the task queue")
	cmd.Flags().StringVar(&f.dir, "dir", "", "folder for listings in the making, of this controller alone (default /var/lib/stoker/controller)")
	cmd.Flags().StringVar(&f.socket, "listen-socket", "/run/stoker/controller.sock", "Unix socket for users of this machine")
	cmd.Flags().StringVar(&f.listen, "listen", "", "host:port for users elsewhere; off loopback it needs --token-file")
	f.add(cmd)
	cmd.Flags().DurationVar(&f.returnWindow, "return-window", time.Minute, "how long a load waits for a worker that went away before others fetch what it had")
	cmd.Flags().DurationVar(&f.grace, "grace", 5*time.Minute, "how long after its job's end data is evicted only after what nobody wanted; a claim may say otherwise")
	cmd.Flags().DurationVar(&f.collectAfter, "collect-after", 7*24*time.Hour, "how long nobody has named a manifest, plan or certificate before it is removed from the manifest store: no claim, pin, dataset or worker; 0 = nothing is removed")
	return cmd
}

func runController(cmd *cobra.Command, f *controllerFlags) error {
	if f.grace < 0 || f.grace > 24*time.Hour {
		return stoker.Errorf(stoker.KindInvalid, "usage", "", "--grace %v: want 0 to 24h", f.grace)
	}
	if f.collectAfter != 0 && f.collectAfter < 24*time.Hour {
		return stoker.Errorf(stoker.KindInvalid, "usage", "", "--collect-after %v: want 0, to remove nothing, or 24h and more", f.collectAfter)
	}
	d, err := f.open(cmd, nil)
	if err != nil {
		return err
	}
	defer func() { _ = d.index.Close() }()
	if d.tokens == nil {
		d.log.Warn("no --token-file: workers will not take orders from this controller")
	}
	if err := d.checkStore(cmd.Context()); err != nil {
		return err
	}
	flows, err := f.flows(d.log)
	if err != nil {
		return err
	}
	defer flows.Close()
	dir := f.dir
	if dir == "" {
		dir = filepath.Join("/var/lib/stoker", "controller")
	}
	socket := f.socket
	if socket != "" {
		socket = absolute(socket)
	}
	c, err := control.Open(control.Options{
		Objects: d.objects, Index: d.index, Flows: flows, Dir: absolute(dir), Socket: socket, Listen: f.listen,
		Tokens: d.tokens, Version: version, Log: d.log, AllowFiles: f.allowFile, Grace: f.grace, CollectAfter: f.collectAfter,
		Limits: f.limits(), Claims: d.index,
	})
	if err != nil {
		return err
	}
	remove, err := pidFile(f.pidFile)
	if err != nil {
		return err
	}
	defer remove()
	return d.serve(cmd.Context(), "controller", c.Run)
}

// flows makes the client of Temporal.
func (f *controllerFlags) flows(log *slog.Logger) (*workflows.Client, error) {
	o := workflows.ClientOptions{Address: f.temporal, Namespace: f.namespace, Cluster: f.cluster, ReturnWindow: f.returnWindow, Log: log}
	key, err := secret("temporal-api-key-file", f.apiKeyFile, "STOKER_TEMPORAL_API_KEY")
	if err != nil {
		return nil, err
	}
	if key != nil { // never without TLS
		o.APIKey = func(context.Context) (string, error) { return key() }
	}
	if f.secure || key != nil || f.temporalTLS.given() || f.temporalName != "" {
		if o.TLS, err = f.temporalTLS.config(); err != nil {
			return nil, err
		}
		o.TLS.ServerName = f.temporalName
	}
	return workflows.NewClient(o)
}
