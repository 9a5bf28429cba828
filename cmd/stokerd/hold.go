package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"stoker.dev/fuse/hold"
	"stoker.dev/internal/worker"
)

// holderSocket is where holder and worker meet unless told otherwise.
const holderSocket = "/run/stoker/hold.sock"

// holdCommand is the holder: it does nothing else, so that nothing else can end it.
func holdCommand() *cobra.Command {
	var socket, pid string
	var keep time.Duration
	cmd := &cobra.Command{
		Use:   "hold",
		Short: "keeps a worker's mounts over its restarts, where systemd does not",
		Long: `Keeps the descriptors of a worker's mounts open while the worker is restarted, or was killed: who reads through
them waits for its next life, and gets no error. It knows nothing of data and needs no restart for an upgrade of the
worker. Before Linux 6.9 that is so for restarts; the views of a worker that was killed get an error there, and are
mounted anew. Under systemd it is not needed: there the unit's FileDescriptorStoreMax= does it.

When it ends itself while the worker lives, nothing happens, and the next holder gets all descriptors from the worker; when both
are gone, the mounts are dead until the worker's next life makes them anew. It needs the uid of its workers; one holder is enough
for all of a node.`,
		Example: `  stokerd hold --holder /run/stoker/hold.sock
  stokerd worker --holder /run/stoker/hold.sock --cache-dir /nvme/stoker --redis redis:6379 --store /shared/stoker`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runHold(cmd, socket, pid, keep) },
	}
	cmd.Flags().StringVar(&socket, "holder", holderSocket, "Unix socket for the workers of this node, open to this uid alone")
	cmd.Flags().DurationVar(&keep, "keep", hold.DefaultKeep, "how long the mounts of a worker that has ended wait for its next life; then their readers get an error")
	cmd.Flags().StringVar(&pid, "pid-file", "", "write the process id here")
	return cmd
}

func runHold(cmd *cobra.Command, socket, pid string, keep time.Duration) error {
	if keep <= 0 {
		return usagef("--keep %v: want more than 0", keep)
	}
	if err := required(map[string]string{"holder": socket}); err != nil {
		return err
	}
	var s shared
	var err error
	if s.log, err = logger(cmd); err != nil {
		return err
	}
	if s.notify, err = newNotifier(s.log); err != nil {
		return err
	}
	h, err := hold.Listen(hold.ServerOptions{Socket: absolute(socket), Keep: keep, Log: s.log})
	if err != nil {
		return err
	}
	remove, err := pidFile(pid)
	if err != nil {
		return err
	}
	defer remove()
	return s.serve(cmd.Context(), "holder", func(ctx context.Context, ready func()) error {
		ready()
		return h.Run(ctx)
	})
}

// holder says who keeps the mounts of a worker: the holder with this socket, else
// systemd, if it started this process, else nobody.
func (s *shared) holder(ctx context.Context, socket string) worker.HoldFunc {
	passed := hold.Passed()
	switch {
	case socket != "":
		for _, f := range passed { // the worker was moved from systemd's store to a holder
			_ = f.Close()
		}
		return func(id string) (hold.Holder, error) { return dialHolder(ctx, absolute(socket), id, s.log) }
	case s.notify != nil && s.notify.conn != nil:
		return func(string) (hold.Holder, error) { return hold.NewSystemd(s.notify.conn, passed), nil }
	}
	return nil
}

// dialHolder is hold.Dial; a nil *Client must not become a Holder.
func dialHolder(ctx context.Context, socket, id string, log *slog.Logger) (hold.Holder, error) {
	c, err := hold.Dial(ctx, socket, id, log)
	if err != nil {
		return nil, err
	}
	return c, nil
}
