package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/spf13/cobra"
)

// readers is how many files one process reads at a time, as a data loader does.
const readers = 4

// epoch is one pass over the dataset, by all processes.
type epoch struct {
	Seconds       float64 `json:"seconds"`
	Before, After counts
}

// training is what the demo's job reports.
type training struct {
	Started time.Time
	Epochs  []epoch
}

type epochOptions struct {
	sums, from string // from: a folder, or s3://bucket
	epoch      int
	env        []string
}

// trainCommand is the demo's job; with --rank it is one of its processes.
func trainCommand() *cobra.Command {
	var o epochOptions
	var countsURL, result string
	rank := -1
	cmd := &cobra.Command{
		Use: "train", Short: "the demo's job: read everything in shuffled order and check it", Hidden: true, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if rank >= 0 {
				return readShare(cmd.Context(), o, rank)
			}
			return train(cmd.Context(), o, countsURL, result)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.sums, "sums", "", "checksums by file")
	f.StringVar(&o.from, "from", os.Getenv("STOKER_MOUNT"), "folder or bucket")
	f.IntVar(&o.epoch, "epoch", 0, "seed of the order")
	f.IntVar(&rank, "rank", -1, "be one process")
	f.StringVar(&countsURL, "counts", "", "where the S3 side's counts are")
	f.StringVar(&result, "result", "", "file for the result")
	return cmd
}

func train(ctx context.Context, o epochOptions, countsURL, result string) error {
	t := training{Started: time.Now()}
	o.env = os.Environ()
	for n := range demoEpochs {
		o.epoch = n
		before, err := readCounts(ctx, countsURL)
		if err != nil {
			return err
		}
		e, err := runEpoch(ctx, o)
		if err != nil {
			return err
		}
		if e.After, err = readCounts(ctx, countsURL); err != nil {
			return err
		}
		e.Before = before
		fmt.Fprintf(os.Stderr, "epoch %d: %.1f s\n", n+1, e.Seconds)
		t.Epochs = append(t.Epochs, e)
	}
	body, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return writeFile(result, body, 0o644)
}

func readCounts(ctx context.Context, url string) (c counts, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return c, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return c, err
	}
	defer resp.Body.Close()
	return c, json.NewDecoder(resp.Body).Decode(&c)
}

// runEpoch reads the dataset once, by demoRanks processes together.
func runEpoch(ctx context.Context, o epochOptions) (epoch, error) {
	self, err := os.Executable()
	if err != nil {
		return epoch{}, err
	}
	began := time.Now()
	var all []*exec.Cmd
	for rank := range demoRanks {
		cmd := exec.CommandContext(ctx, self, "train", "--sums", o.sums, "--from", o.from, "--epoch", fmt.Sprint(o.epoch), "--rank", fmt.Sprint(rank))
		cmd.Stderr, cmd.Env = os.Stderr, o.env
		if err := cmd.Start(); err != nil {
			return epoch{}, err
		}
		all = append(all, cmd)
	}
	var errs []error
	for rank, cmd := range all {
		if err := cmd.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("process %d of the training: %w", rank, err))
		}
	}
	return epoch{Seconds: time.Since(began).Seconds()}, errors.Join(errs...)
}

// readShare reads every demoRanks-th file of the epoch's order and checks it.
func readShare(ctx context.Context, o epochOptions, rank int) error {
	body, err := os.ReadFile(o.sums)
	if err != nil {
		return err
	}
	sums := map[string]string{}
	if err := json.Unmarshal(body, &sums); err != nil {
		return err
	}
	files := slices.Sorted(maps.Keys(sums))
	rand.New(rand.NewPCG(uint64(o.epoch), 1)).Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	open := opener(ctx, o.from)
	todo := make(chan string)
	failed := make(chan error, readers) // each reader ends with at most one
	var reading sync.WaitGroup
	for range readers {
		reading.Go(func() {
			buf := make([]byte, 1<<20)
			for file := range todo {
				if err := check(open, file, sums[file], buf); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	for i := rank; i < len(files); i += demoRanks {
		select {
		case todo <- files[i]:
			continue
		case err = <-failed:
		case <-ctx.Done():
			err = ctx.Err()
		}
		break
	}
	close(todo)
	reading.Wait()
	close(failed)
	return errorsFirst(err, <-failed)
}

func check(open func(string) (io.ReadCloser, error), file, want string, buf []byte) error {
	f, err := open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("%s: SHA-256 is %s, want %s", file, got, want)
	}
	return nil
}

// opener reads from a folder or, with the AWS environment, from a bucket.
func opener(ctx context.Context, from string) func(string) (io.ReadCloser, error) {
	bucket, ok := strings.CutPrefix(from, "s3://")
	if !ok {
		return func(file string) (io.ReadCloser, error) { return os.Open(filepath.Join(from, file)) }
	}
	c := s3.New(s3.Options{
		Region: os.Getenv("AWS_REGION"), BaseEndpoint: aws.String(os.Getenv("AWS_ENDPOINT_URL_S3")), UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY"), ""),
		HTTPClient:  &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: readers}},
	})
	return func(file string) (io.ReadCloser, error) {
		out, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &file})
		if err != nil {
			return nil, err
		}
		return out.Body, nil
	}
}
