package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/spf13/cobra"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/server/common/authorization"
	tcluster "go.temporal.io/server/common/cluster"
	"go.temporal.io/server/common/config"
	"go.temporal.io/server/common/dynamicconfig"
	"go.temporal.io/server/common/log"
	"go.temporal.io/server/common/membership/static"
	"go.temporal.io/server/common/metrics"
	"go.temporal.io/server/common/persistence/sql/sqlplugin/sqlite"
	"go.temporal.io/server/common/primitives"
	schema "go.temporal.io/server/schema/sqlite"
	"go.temporal.io/server/temporal"
	"google.golang.org/protobuf/types/known/durationpb"
)

// serveCommand is what stoker-dev starts as children.
func serveCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "serve ROLE --dir D", Short: "be the temporal, s3 or redis process of a cluster", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := openCluster(dir)
			if err != nil {
				return err
			}
			switch args[0] {
			case "temporal":
				return serveTemporal(cmd.Context(), c)
			case "s3":
				return serveS3(cmd.Context(), c)
			case "redis":
				return serveRedis(cmd.Context(), c)
			}
			return usagef("%q is no role to serve", args[0])
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder of the cluster")
	return cmd
}

// serveRedis is for machines without a redis-server.
func serveRedis(ctx context.Context, c *cluster) error {
	m := miniredis.NewMiniRedis()
	if err := m.StartAddr(c.address("redis")); err != nil {
		return err
	}
	defer m.Close()
	<-ctx.Done()
	return nil
}

// serveS3 serves the folder of buckets. Keep-alive is off in the server by
// default; without it each request pays for a connection.
func serveS3(ctx context.Context, c *cluster) error {
	if err := os.MkdirAll(c.path("s3"), 0o700); err != nil {
		return err
	}
	be, err := posix.New(c.S3Root, meta.XattrMeta{}, posix.PosixOpts{})
	if err != nil {
		return err
	}
	defer be.Shutdown()
	return embedgw.RunVersityGW(ctx, be, &embedgw.Config{
		RootUserAccess: c.Access, RootUserSecret: c.Secret, Region: "us-east-1", Ports: []string{c.address("s3")},
		MaxConnections: 4096, MaxRequests: 4096, MultipartMaxParts: 10_000, KeepAlive: true, Quiet: true,
	})
}

// serveTemporal runs a Temporal server on one SQLite file.
func serveTemporal(ctx context.Context, c *cluster) error {
	if err := os.MkdirAll(c.path("temporal"), 0o700); err != nil {
		return err
	}
	file := c.path("temporal", "temporal.db")
	cfg, hosts, err := temporalConfig(c, file)
	if err != nil {
		return err
	}
	sql := cfg.Persistence.DataStores[sqlite.PluginName].SQL
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		if err := schema.SetupSchema(sql); err != nil {
			return fmt.Errorf("schema: %w", err)
		}
	}
	ns, err := schema.NewNamespaceConfig(cfg.ClusterMetadata.CurrentClusterName, "default", false, searchAttributes())
	if err != nil {
		return err
	}
	ns.Detail.Config.Retention = durationpb.New(7 * 24 * time.Hour)
	if err := schema.CreateNamespaces(sql, ns); err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	// Warnings alone: at info it logs each workflow task's life.
	logger := log.NewZapLogger(log.BuildZapLogger(log.Config{Stdout: true, Level: "error"}))
	server, err := temporal.NewServer(
		temporal.WithConfig(cfg), temporal.ForServices(temporal.DefaultServices), temporal.WithStaticHosts(hosts),
		temporal.WithLogger(logger), temporal.WithAuthorizer(authorization.NewNoopAuthorizer()),
		temporal.WithClaimMapper(func(*config.Config) authorization.ClaimMapper { return authorization.NewNoopClaimMapper() }),
		temporal.WithDynamicConfigClient(tuning()),
	)
	if err != nil {
		return err
	}
	if err := server.Start(); err != nil {
		return err
	}
	<-ctx.Done()
	return server.Stop()
}

// searchAttributes are those of workflows/search.go. A controller adds them
// elsewhere; here they are there from the first moment.
func searchAttributes() map[string]enums.IndexedValueType {
	return map[string]enums.IndexedValueType{
		"StokerDataset": enums.INDEXED_VALUE_TYPE_KEYWORD_LIST,
		"StokerJob":     enums.INDEXED_VALUE_TYPE_KEYWORD,
		"StokerPhase":   enums.INDEXED_VALUE_TYPE_KEYWORD,
	}
}

// tuning is what one process on one machine wants: one partition, since more
// only cost memory and order, and room for those who look at jobs.
func tuning() dynamicconfig.StaticClient {
	return dynamicconfig.StaticClient{
		dynamicconfig.MakeKey("matching.numTaskqueueReadPartitions"):  1,
		dynamicconfig.MakeKey("matching.numTaskqueueWritePartitions"): 1,
		dynamicconfig.MakeKey("frontend.namespaceRPS.visibility"):     1000,
		dynamicconfig.MakeKey("frontend.namespaceRPS"):                20_000,
		dynamicconfig.MakeKey("frontend.rps"):                         20_000,
		dynamicconfig.MakeKey("history.rps"):                          20_000,
		// The answer to a workflow's step brings its activity along.
		dynamicconfig.MakeKey("system.enableActivityEagerExecution"): true,
		// By default a history shard looks for tasks 20 times a second. All
		// workflows are in one shard here: each step of one would take 50 ms.
		dynamicconfig.MakeKey("history.transferProcessorMaxPollRPS"):   1000,
		dynamicconfig.MakeKey("history.timerProcessorMaxPollRPS"):      1000,
		dynamicconfig.MakeKey("history.visibilityProcessorMaxPollRPS"): 1000,
		dynamicconfig.MakeKey("matching.rps"):                          20_000,
	}
}

// temporalConfig puts all four services into one process, on loopback. Only
// the frontend's port is known to others.
func temporalConfig(c *cluster, file string) (*config.Config, map[primitives.ServiceName]static.Hosts, error) {
	front := c.Ports["temporal"]
	ports := map[primitives.ServiceName]int{primitives.FrontendService: front}
	for _, name := range []primitives.ServiceName{primitives.HistoryService, primitives.MatchingService, primitives.WorkerService} {
		l, err := listen()
		if err != nil {
			return nil, nil, err
		}
		defer l.Close()
		ports[name] = l.Addr().(*net.TCPAddr).Port
	}
	services, hosts := map[string]config.Service{}, map[primitives.ServiceName]static.Hosts{}
	for name, port := range ports {
		services[string(name)] = config.Service{RPC: config.RPC{GRPCPort: port, BindOnIP: "127.0.0.1"}}
		hosts[name] = static.SingleLocalHost(fmt.Sprintf("127.0.0.1:%d", port))
	}
	public := fmt.Sprintf("127.0.0.1:%d", front)
	return &config.Config{
		Global: config.Global{Metrics: &metrics.Config{}},
		Persistence: config.Persistence{
			DefaultStore: sqlite.PluginName, VisibilityStore: sqlite.PluginName, NumHistoryShards: 1,
			DataStores: map[string]config.DataStore{sqlite.PluginName: {SQL: &config.SQL{
				PluginName: sqlite.PluginName, DatabaseName: file,
				// Pragmas, but for mode. It survives kill -9; the default journal is
				// synced several times for each step of a workflow.
				ConnectAttributes: map[string]string{"mode": "rwc", "journal_mode": "wal", "synchronous": "normal", "wal_autocheckpoint": "10000"},
			}}},
		},
		ClusterMetadata: &tcluster.Config{
			FailoverVersionIncrement: 10, MasterClusterName: "active", CurrentClusterName: "active",
			ClusterInformation: map[string]tcluster.ClusterInformation{"active": {Enabled: true, InitialFailoverVersion: 1, RPCAddress: public}},
		},
		DCRedirectionPolicy: config.DCRedirectionPolicy{Policy: "noop"},
		Services:            services,
		Archival:            config.Archival{History: config.HistoryArchival{State: "disabled"}, Visibility: config.VisibilityArchival{State: "disabled"}},
		PublicClient:        config.PublicClient{HostPort: public},
		NamespaceDefaults: config.NamespaceDefaults{Archival: config.ArchivalNamespaceDefaults{
			History: config.HistoryArchivalNamespaceDefaults{State: "disabled"}, Visibility: config.VisibilityArchivalNamespaceDefaults{State: "disabled"}}},
	}, hosts, nil
}
