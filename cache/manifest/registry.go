package manifest

import (
	"context"
	"encoding/json"
	"regexp"
	"strings"
	"time"

	"stoker.dev"
)

// Dataset is one entry of the registry: a name and its generations.
type Dataset struct {
	Format      int           `json:"format,omitempty"` // of this document; 0 and 1 are the same
	Name        string        `json:"name"`
	Owner       string        `json:"owner"`
	Roots       []Root        `json:"roots"`
	MaxAge      time.Duration `json:"maxAge,omitempty"` // older listings are renewed before use; 0 = never
	Created     time.Time     `json:"created"`
	Generations []Generation  `json:"generations"`
	SyncEvery   time.Duration `json:"syncEvery,omitempty"` // listed again on schedule; 0 = not
	LastSync    *Synced       `json:"lastSync,omitempty"`  // nil = none yet since that is kept
	Evict       string        `json:"evict,omitempty"`     // see evict.Mode; "" = auto
	TTL         time.Duration `json:"ttl,omitempty"`       // of data that nobody holds or reads; 0 = as the workers say, less = none
	Replicas    int           `json:"replicas,omitempty"`  // workers that are to have each shard; 0 = 1
	Nonce       string        `json:"nonce,omitempty"`     // of the request that added it; a repetition has the same
	Readers     []string      `json:"readers,omitempty"`   // who may read it besides owner and admins: users, and groups as @group; none = everybody
}

// Synced is how the last sync of a dataset ended. One that failed left the
// current generation as it was.
type Synced struct {
	At      time.Time `json:"at"`                // its end; of one that succeeded, when it had listed
	Kind    string    `json:"kind,omitempty"`    // stoker.Kind by name of why it failed; "" = it did not
	Message string    `json:"message,omitempty"` // why it failed
}

// Generation is one frozen listing of a dataset.
type Generation struct {
	Number   int       `json:"number"` // from 1 on
	Manifest stoker.ID `json:"manifest"`
	ListedAt time.Time `json:"listedAt"`
	Objects  int64     `json:"objects"`
	Bytes    int64     `json:"bytes"`
}

// Current returns the newest generation; Number 0 if there is none.
func (d *Dataset) Current() Generation {
	if len(d.Generations) == 0 {
		return Generation{}
	}
	return d.Generations[len(d.Generations)-1]
}

// Find returns the generation with a number.
func (d *Dataset) Find(number int) (Generation, bool) {
	for _, g := range d.Generations {
		if g.Number == number {
			return g, true
		}
	}
	return Generation{}, false
}

var datasetName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// ValidateName says whether a dataset may be called so.
func ValidateName(name string) error {
	if !datasetName.MatchString(name) {
		return stoker.Errorf(stoker.KindInvalid, "dataset", name, "a name has 1 to 63 of a-z 0-9 . _ - and begins with a letter or digit")
	}
	return nil
}

const (
	registryPrefix = "datasets/"
	registryFormat = 1 // fields are added without a new one; whoever must know of a change needs one
	readersFormat  = 2 // of a dataset that not everybody may read: earlier releases must not serve it
)

func registryName(name string) string { return registryPrefix + name + ".json" }

// Dataset reads a registry entry and its tag, for UpdateDataset.
func (s *Store) Dataset(ctx context.Context, name string) (*Dataset, string, error) {
	if err := ValidateName(name); err != nil {
		return nil, "", err
	}
	body, tag, err := s.objects.Get(ctx, registryName(name))
	if stoker.KindOf(err) == stoker.KindNotExist {
		return nil, "", stoker.Errorf(stoker.KindNotExist, "dataset", name, "is not registered; `stoker dataset add %s URI` registers it", name)
	} else if err != nil {
		return nil, "", err
	}
	var d Dataset
	if err := json.Unmarshal(body, &d); err != nil {
		return nil, "", stoker.Errorf(stoker.KindCorrupt, "dataset", name, "%w", err)
	}
	if d.Format > readersFormat {
		return nil, "", stoker.Errorf(stoker.KindInvalid, "dataset", name, "its entry has format %d, this program knows %d: upgrade it", d.Format, readersFormat)
	}
	return &d, tag, nil
}

// encode makes a registry entry's bytes, in the format of this program.
func (d *Dataset) encode() ([]byte, error) {
	if d.Format = registryFormat; len(d.Readers) > 0 {
		d.Format = readersFormat
	}
	body, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInternal, "dataset", d.Name, "%w", err)
	}
	return body, nil
}

// Datasets reads all registry entries, sorted by name.
func (s *Store) Datasets(ctx context.Context) ([]*Dataset, error) {
	names, err := s.objects.List(ctx, registryPrefix)
	if err != nil {
		return nil, err
	}
	var out []*Dataset
	for _, n := range names {
		d, _, err := s.Dataset(ctx, strings.TrimSuffix(strings.TrimPrefix(n, registryPrefix), ".json"))
		if stoker.KindOf(err) == stoker.KindNotExist {
			continue // removed meanwhile
		} else if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// CreateDataset registers a dataset; Held if the name is taken.
func (s *Store) CreateDataset(ctx context.Context, d *Dataset) error {
	if err := ValidateName(d.Name); err != nil {
		return err
	}
	body, err := d.encode()
	if err != nil {
		return err
	}
	_, err = s.objects.PutIfAbsent(ctx, registryName(d.Name), body)
	return err
}

// UpdateDataset replaces an entry that still has the tag; Held if another one
// changed it.
func (s *Store) UpdateDataset(ctx context.Context, d *Dataset, tag string) error {
	if err := ValidateName(d.Name); err != nil {
		return err
	}
	body, err := d.encode()
	if err != nil {
		return err
	}
	_, err = s.objects.ReplaceIf(ctx, registryName(d.Name), body, tag)
	return err
}

// RemoveDataset takes a name out of the registry; its manifests stay.
func (s *Store) RemoveDataset(ctx context.Context, name string) error {
	if err := ValidateName(name); err != nil {
		return err
	}
	return s.objects.Delete(ctx, registryName(name))
}
