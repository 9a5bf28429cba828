// Package api is what stoker's processes say to each other: the JSON of the
// controller's and the worker's HTTP APIs, their clients, and the helpers both
// servers share. Field names are part of the contract and only ever added.
package api

import (
	"slices"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

// Failure is one object that is not resident, and why.
type Failure struct {
	Path   string `json:"path"` // relative to the mount; bytes that are not UTF-8 percent-escaped
	Kind   string `json:"kind"` // notexist|stale|corrupt|denied|transient|nospace
	Reason string `json:"reason"`
}

// Unmountable is a key that cannot be a path.
type Unmountable struct {
	Key    string `json:"key"`
	Reason string `json:"reason"`
}

// Refetched counts UFS bytes read more than once, by reason.
type Refetched struct {
	Lost   int64 `json:"lost"`
	Retry  int64 `json:"retry"`
	Hedge  int64 `json:"hedge"`
	Bypass int64 `json:"bypass"`
}

// Add adds o's counts to r.
func (r *Refetched) Add(o Refetched) {
	r.Lost, r.Retry, r.Hedge, r.Bypass = r.Lost+o.Lost, r.Retry+o.Retry, r.Hedge+o.Hedge, r.Bypass+o.Bypass
}

// Sub takes o's counts from r.
func (r *Refetched) Sub(o Refetched) {
	r.Lost, r.Retry, r.Hedge, r.Bypass = r.Lost-o.Lost, r.Retry-o.Retry, r.Hedge-o.Hedge, r.Bypass-o.Bypass
}

// States of a certificate.
const (
	CertificateReady     = "Ready"
	CertificateFailed    = "Failed"
	CertificateCancelled = "Cancelled"
)

// Certificate says what is resident of a dataset: the answer of preload
// --wait and of verify.
type Certificate struct {
	Dataset         string    `json:"dataset"`
	Generation      int       `json:"generation"`
	Manifest        stoker.ID `json:"manifest"`
	State           string    `json:"state"` // Ready | Failed | Cancelled
	Objects         int64     `json:"objects"`
	Bytes           int64     `json:"bytes"`
	ResidentObjects int64     `json:"residentObjects"`
	ResidentBytes   int64     `json:"residentBytes"`
	UFSRequests     int64     `json:"ufsRequests"`
	UFSBytes        int64     `json:"ufsBytes"`
	Refetched       Refetched `json:"refetched"`
	// Selection is what is counted; absent = all objects.
	Selection *Selection `json:"selection,omitempty"`
	// Layout is local if each worker of Nodes has every byte, or was to have it;
	// absent = spread.
	Layout string   `json:"layout,omitempty"`
	Nodes  []string `json:"nodes,omitempty"` // ids of workers, sorted
	// Replicas: so many workers have each shard whole; absent = it was asked for one.
	Replicas    int           `json:"replicas,omitempty"`
	Seconds     float64       `json:"seconds"`
	Failed      []Failure     `json:"failed"`      // never null
	Unmountable []Unmountable `json:"unmountable"` // never null
	// Deep: every byte on every worker was read again and compared with its
	// checksum; else each block was found with its length and checksum recorded.
	Deep bool `json:"deep,omitempty"`
	// Checksums counts blocks with a recorded checksum, copies on several
	// workers each.
	Checksums Checksums           `json:"checksums"`
	Workers   []CertificateWorker `json:"workers,omitempty"` // those that have some of it, by id
	Wrong     []WrongFile         `json:"wrong,omitempty"`   // by path; resident all the same if another worker has them right
}

// Checksums counts blocks whose checksums stand behind a certificate. An object
// byte that is in no block does not exist: empty files need none.
type Checksums struct {
	Blocks     int64 `json:"blocks"`               // on disk, of their right length, with a recorded checksum
	ReadBlocks int64 `json:"readBlocks,omitempty"` // of them: read again, and right
	ReadBytes  int64 `json:"readBytes,omitempty"`
}

// CertificateWorker is what one worker has of a dataset.
type CertificateWorker struct {
	Worker      string `json:"worker"`
	Shards      int    `json:"shards"` // of which it has at least a block
	Blocks      int64  `json:"blocks"`
	Bytes       int64  `json:"bytes"`           // of objects
	Whole       bool   `json:"whole,omitempty"` // it has every byte
	WrongBlocks int    `json:"wrongBlocks,omitempty"`
}

// WrongFile is an object of which a worker had wrong bytes. They are out of use
// since they were found.
type WrongFile struct {
	Path   string `json:"path"` // as in Failure
	Worker string `json:"worker"`
}

// Job states that users see (design: Planned to Released).
const (
	JobPlanned  = "Planned"
	JobQueued   = "Queued"
	JobWarming  = "Warming"
	JobReady    = "Ready"
	JobLeased   = "Leased"
	JobGrace    = "Grace"
	JobReleased = "Released"
	JobDegraded = "Degraded"
	JobFailed   = "Failed"
)

// DatasetRef is a dataset as a user names it: NAME or URI, [@GEN], [=DIR].
type DatasetRef struct {
	Name       string `json:"name"`                 // registered name, or a URI
	Generation int    `json:"generation,omitempty"` // 0 = current
	Dir        string `json:"dir,omitempty"`        // absolute; "" = the default mount point
	// Selection is what is wanted of its objects; absent = as the claim says, else all.
	Selection *Selection `json:"selection,omitempty"`
}

// ClaimRequest is the body of POST /v1/jobs. It is idempotent on Job.
type ClaimRequest struct {
	Job             string       `json:"job,omitempty"` // "" = generated
	Datasets        []DatasetRef `json:"datasets"`
	OnMiss          string       `json:"onMiss,omitempty"`          // start|wait|fail; "" = start
	DeadlineSeconds *float64     `json:"deadlineSeconds,omitempty"` // from submission; nil = none
	Layout          string       `json:"layout,omitempty"`          // auto|local|spread; "" = spread
	Nodes           []string     `json:"nodes,omitempty"`           // of the job, for local and auto: ids of workers, or their nodes' names
	Replicas        int          `json:"replicas,omitempty"`        // 0 = as the dataset says, else 1
	Priority        int          `json:"priority,omitempty"`        // -1000 to 1000: the highest gets space first
	Sync            bool         `json:"sync,omitempty"`            // new generation first
	// Selection is what the claim wants of each of its datasets that does not say;
	// absent = all.
	Selection *Selection `json:"selection,omitempty"`
	// Sampler is the job's order of samples, as planner/order reads it:
	// pytorch:seed=0,world=8; "" = not known.
	Sampler string `json:"sampler,omitempty"`
	// LimitBytesPerSecond is the most that the load may read from its stores while it
	// is for this claim alone; 0 = no limit.
	LimitBytesPerSecond int64  `json:"limitBytesPerSecond,omitempty"`
	Preload             bool   `json:"preload,omitempty"` // release at Ready; refuse at once if it does not fit
	Owner               string `json:"owner,omitempty"`   // filled by the controller from the principal
	// Nonce tells a repetition from another claim of the same job id: while a
	// job lives, only its own claim is answered.
	Nonce string `json:"nonce,omitempty"`
	// TTLSeconds makes it a hook's claim: nobody renews it, it lives until it is
	// released or for so long, counted from its last repetition. 0 = it lives
	// while it is renewed.
	TTLSeconds float64 `json:"ttlSeconds,omitempty"`
	// Submitted is when the scheduler got the job, of a hook's claim: job ids
	// are used again, and a later submission replaces the claim of an earlier one.
	Submitted time.Time `json:"submitted,omitzero"`
	// GraceSeconds is how long after its release the data is evicted only after
	// what nobody wanted; nil = as the controller has it.
	GraceSeconds *float64 `json:"graceSeconds,omitempty"`
	// Verify "deep": the data is Ready when every byte on every worker was read
	// again and matches its checksum; "" = when each is there with its checksum
	// recorded.
	Verify string `json:"verify,omitempty"`
	// For is the user to whom a hook's claim belongs, by name; only an admin, as a
	// scheduler's hook is, may claim for others. "" = the caller.
	For string `json:"for,omitempty"`
}

// VerifyDeep is ClaimRequest.Verify.
const VerifyDeep = "deep"

// JobChange is the body of PATCH /v1/jobs/{job}: what a claim wishes from now on.
// What is absent stays.
type JobChange struct {
	Priority            *int     `json:"priority,omitempty"`
	DeadlineSeconds     *float64 `json:"deadlineSeconds,omitempty"`     // from now; less than 0: none any more
	LimitBytesPerSecond *int64   `json:"limitBytesPerSecond,omitempty"` // 0: none any more
}

// RenewRequest is the body of POST /v1/jobs/{job}/renew.
type RenewRequest struct {
	Started bool `json:"started,omitempty"` // the job's command runs
}

// JobDataset is one dataset of a job, resolved.
type JobDataset struct {
	DatasetRef
	Manifest      stoker.ID    `json:"manifest"`
	ListedAt      time.Time    `json:"listedAt"`
	Bytes         int64        `json:"bytes"`
	ResidentBytes int64        `json:"residentBytes"`
	Certificate   *Certificate `json:"certificate,omitempty"`
	Load          *LoadStatus  `json:"load,omitempty"` // that runs for it
	// Private: not everybody may read it, and views of it are their owner's alone.
	Private bool `json:"private,omitempty"`
}

// LoadStatus is a load that runs, or waits to. What is resident is counted on
// the disks of live workers, each copy; of a load of several copies a part.
type LoadStatus struct {
	State           string    `json:"state"` // Planned, Queued or Warming
	Objects         int64     `json:"objects"`
	ResidentObjects int64     `json:"residentObjects"`
	Bytes           int64     `json:"bytes"`
	ResidentBytes   int64     `json:"residentBytes"`
	BytesPerSec     float64   `json:"bytesPerSecond"`
	ETASeconds      float64   `json:"etaSeconds"`              // -1 = unknown
	FailedObjects   int       `json:"failedObjects,omitempty"` // so far
	WaitingSince    time.Time `json:"waitingSince,omitzero"`   // since then the UFS does not answer
	PausedBy        string    `json:"pausedBy,omitempty"`
	// LimitBytesPerSecond is what it may read from its stores; 0 = no limit.
	LimitBytesPerSecond int64          `json:"limitBytesPerSecond,omitempty"`
	Check               *CheckProgress `json:"check,omitempty"` // all is resident, and read again
	Workers             []LoadWorker   `json:"workers"`         // those that have some of it or load it, by id
}

// LoadWorker is what one worker does in a load.
type LoadWorker struct {
	Worker        string    `json:"worker"`
	Objects       int64     `json:"objects"` // whole ones, as in ManifestHolding
	ResidentBytes int64     `json:"residentBytes"`
	BytesPerSec   float64   `json:"bytesPerSecond"`
	LoadedBytes   int64     `json:"loadedBytes,omitempty"`   // of the parts that it loads now
	LoadBytes     int64     `json:"loadBytes,omitempty"`     // all of them; 0 = it loads nothing now
	UFSBytes      int64     `json:"ufsBytes,omitempty"`      // that those loads fetched
	FailedObjects int       `json:"failedObjects,omitempty"` // in those loads so far
	WaitingSince  time.Time `json:"waitingSince,omitzero"`   // since then the UFS does not answer it
	CheckedBytes  int64     `json:"checkedBytes,omitempty"`  // read again, of checkTotalBytes
	CheckAllBytes int64     `json:"checkTotalBytes,omitempty"`
}

// JobStatus is GET /v1/jobs/{job}, and a line of its watch stream.
type JobStatus struct {
	Job           string       `json:"job"`
	State         string       `json:"state"`
	Owner         string       `json:"owner"`
	Datasets      []JobDataset `json:"datasets"`
	Bytes         int64        `json:"bytes"`
	ResidentBytes int64        `json:"residentBytes"`
	ETASeconds    float64      `json:"etaSeconds"` // -1 = unknown
	BytesPerSec   float64      `json:"bytesPerSecond"`
	Submitted     time.Time    `json:"submitted"`
	Layout        string       `json:"layout,omitempty"`      // local or auto, as it was asked for; absent = spread
	Nodes         []string     `json:"nodes,omitempty"`       // of it: ids of workers
	Sampler       string       `json:"sampler,omitempty"`     // as it was claimed
	WaitingSince  time.Time    `json:"waitingSince,omitzero"` // since then the UFS does not answer a load that runs for it
	// Check is how far a deep verification is that the job waits for: all is
	// resident then.
	Check      *CheckProgress `json:"check,omitempty"`
	Deadline   time.Time      `json:"deadline,omitzero"`   // by which it wants its data, while that is not there
	Error      *ErrorBody     `json:"error,omitempty"`     // Failed: why; before: what it waits for
	ExpiresAt  time.Time      `json:"expiresAt,omitzero"`  // of a hook's claim, unless it is repeated
	GraceUntil time.Time      `json:"graceUntil,omitzero"` // of one that was released
	Queue      *QueuePlace    `json:"queue,omitempty"`     // of one that holds nothing, and waits for space
	Priority   int            `json:"priority,omitempty"`  // among claims that wait for space, and among loads
}

// QueuePlace is how a claim stands among those that wait for space.
type QueuePlace struct {
	Place       int   `json:"place"` // from 1
	Of          int   `json:"of"`
	Priority    int   `json:"priority"`
	NeededBytes int64 `json:"neededBytes"` // for all its datasets that are not held yet
	FreeBytes   int64 `json:"freeBytes"`   // that could be had when it was last looked at
}

// JobLine is one element of `stoker jobs -o json`.
type JobLine struct {
	Job           string      `json:"job"`
	State         string      `json:"state"`
	Owner         string      `json:"owner"`
	Datasets      []string    `json:"datasets"`
	Bytes         int64       `json:"bytes"`
	ResidentBytes int64       `json:"residentBytes"`
	ETASeconds    float64     `json:"etaSeconds"`
	BytesPerSec   float64     `json:"bytesPerSecond,omitempty"`
	Deadline      time.Time   `json:"deadline,omitzero"` // of one whose data is not there yet
	Submitted     time.Time   `json:"submitted,omitzero"`
	Ended         time.Time   `json:"ended,omitzero"`  // of one that has ended
	Queue         *QueuePlace `json:"queue,omitempty"` // of one that holds nothing, and waits for space
	// Certificates are those of one that has ended, if that was asked for, by
	// dataset: their figures, and not the lists in them.
	Certificates []CertificateLine `json:"certificates,omitempty"`
	Error        *ErrorBody        `json:"error,omitempty"` // with Certificates: why it failed
}

// CertificateLine has the figures of a certificate.
type CertificateLine struct {
	Dataset         string    `json:"dataset"`
	Generation      int       `json:"generation"`
	Manifest        stoker.ID `json:"manifest"`
	Certificate     stoker.ID `json:"certificate"` // its hash: its name in the manifest store
	State           string    `json:"state"`       // as in Certificate
	Deep            bool      `json:"deep,omitempty"`
	Objects         int64     `json:"objects"`
	ResidentObjects int64     `json:"residentObjects"`
	Bytes           int64     `json:"bytes"`
	ResidentBytes   int64     `json:"residentBytes"`
	UFSRequests     int64     `json:"ufsRequests"`
	UFSBytes        int64     `json:"ufsBytes"`
	Refetched       Refetched `json:"refetched"`
	FailedObjects   int       `json:"failedObjects"`
	Seconds         float64   `json:"seconds"`
}

// WorkerInfo is one element of `stoker workers -o json`.
type WorkerInfo struct {
	ID            string             `json:"id"`
	Node          string             `json:"node,omitempty"` // its node, as its scheduler calls it
	Incarnation   stoker.Incarnation `json:"incarnation"`
	Address       string             `json:"address"` // base URL of its TCP API
	Socket        string             `json:"socket"`  // path of its Unix socket
	PID           int                `json:"pid"`
	State         string             `json:"state"` // live | draining | drained | lost
	CapacityBytes int64              `json:"capacityBytes"`
	UsedBytes     int64              `json:"usedBytes"`
	ReservedBytes int64              `json:"reservedBytes"`
	FreeableBytes int64              `json:"freeableBytes"`   // of usedBytes: held by nobody
	Disks         []DiskInfo         `json:"disks,omitempty"` // its cache folders; none if it did not answer
	UFS           []UFSUse           `json:"ufs,omitempty"`   // of each limited under file system in use
	// Reads counts since the worker started; nil if it did not answer.
	Reads *ReadCounters `json:"reads,omitempty"`
	Drain *Drain        `json:"drain,omitempty"` // of one that is drained
}

// UFSUse is what a worker uses of the cluster's budget of one under file
// system. All are in a second.
type UFSUse struct {
	Endpoint      string  `json:"endpoint"`   // host and port, or file: and where it is mounted
	LimitBytes    int64   `json:"limitBytes"` // of the whole cluster; 0 = none
	LimitRequests float64 `json:"limitRequests"`
	ShareBytes    int64   `json:"shareBytes"` // that this worker may take at present
	ShareRequests float64 `json:"shareRequests"`
	UsedBytes     int64   `json:"usedBytes"`
	UsedRequests  float64 `json:"usedRequests"`
	Members       int     `json:"members"`         // workers and controllers that share it; 0 = not known
	WaitedSeconds float64 `json:"waitedSeconds"`   // since the worker started, added up over all that waited
	Alone         bool    `json:"alone,omitempty"` // the index does not answer: an equal share
}

// DiskInfo is a cache folder of a worker. Only what is in service counts in
// the worker's capacityBytes and usedBytes.
type DiskInfo struct {
	Dir           string `json:"dir"`
	State         string `json:"state"`            // ok | full | readonly | failed: the last two are out of service
	Reason        string `json:"reason,omitempty"` // why it is not ok
	CapacityBytes int64  `json:"capacityBytes"`    // as configured
	UsedBytes     int64  `json:"usedBytes"`
}

// DatasetInfo is one element of `stoker dataset ls -o json`.
type DatasetInfo struct {
	Name          string    `json:"name"`
	URIs          []string  `json:"uris"`
	Owner         string    `json:"owner"`
	Generation    int       `json:"generation"`
	Manifest      stoker.ID `json:"manifest"`
	Objects       int64     `json:"objects"`
	Bytes         int64     `json:"bytes"`
	ResidentBytes int64     `json:"residentBytes"`
	ListedAt      time.Time `json:"listedAt"`
	Pins          []Pin     `json:"pins,omitempty"` // of all its generations
	// SyncEverySeconds is how often it is listed again on schedule; 0 = not.
	SyncEverySeconds float64     `json:"syncEverySeconds,omitempty"`
	LastSync         *SyncResult `json:"lastSync,omitempty"`
	// Replicas is how many workers are to have each shard, of claims that do not
	// say; absent = 1.
	Replicas int `json:"replicas,omitempty"`
	// Readers are who may read it, besides its owner and admins; absent = everybody.
	Readers []string `json:"readers,omitempty"`
	Eviction
}

// ReadersRequest is the body of PUT /v1/datasets/{name}/readers: one of what it has.
type ReadersRequest struct {
	Everybody bool     `json:"everybody,omitempty"`
	Readers   []string `json:"readers,omitzero"` // these, as in AddDatasetRequest
	Add       []string `json:"add,omitempty"`    // to those that there are, and
	Remove    []string `json:"remove,omitempty"` // of them
}

// SyncResult is how the last sync of a dataset ended. One that failed left the
// current generation as it was.
type SyncResult struct {
	At    time.Time  `json:"at"`
	Error *ErrorBody `json:"error,omitempty"` // nil: it did not fail
}

// Pin is a person's hold on a dataset's data, until it expires.
type Pin struct {
	Owner      string    `json:"owner"`
	Generation int       `json:"generation"`
	Manifest   stoker.ID `json:"manifest"`
	Reason     string    `json:"reason"`
	Since      time.Time `json:"since"`
	Until      time.Time `json:"until"`
}

// PinRequest is the body of PUT /v1/datasets/{name}/pin.
type PinRequest struct {
	ForSeconds float64 `json:"forSeconds"` // from now on
	Reason     string  `json:"reason"`
}

// DatasetDetail is GET /v1/datasets/{name}: what show prints.
type DatasetDetail struct {
	DatasetInfo
	Shards      int            `json:"shards"`
	Directories int64          `json:"directories"`
	Locations   []ufs.Location `json:"locations"`
	Unmountable []Unmountable  `json:"unmountable"`
	Holders     []string       `json:"holders"`
	Unchanged   bool           `json:"unchanged,omitempty"` // a sync found what the generation has
	Changes     *ChangeCounts  `json:"changes,omitempty"`   // what a sync found since the generation before
	NextSync    time.Time      `json:"nextSync,omitzero"`   // by its schedule
	Load        *LoadStatus    `json:"load,omitempty"`      // that runs or waits
	Selected    *Tally         `json:"selected,omitempty"`  // by the selection that was asked about
	Copies      *CopiesStatus  `json:"copies,omitempty"`    // how they were when they were last looked after
	Views       []ViewInfo     `json:"views,omitempty"`     // of this generation
	ReadersOf   []string       `json:"readersOf,omitempty"` // datasets with some of the same data and readers of their own, who alone read it
}

// ViewInfo is a mounted view of a dataset.
type ViewInfo struct {
	Worker string `json:"worker"` // whole id
	Node   string `json:"node"`
	Dir    string `json:"dir"`
	View   string `json:"view"` // tree or kernel
	Why    string `json:"why"`  // why it is that
	Job    string `json:"job,omitempty"`
}

// CopiesStatus is what a repair of a dataset's copies found and did.
type CopiesStatus struct {
	At         time.Time  `json:"at"` // when it began
	Running    bool       `json:"running,omitempty"`
	Replicas   int        `json:"replicas"`             // that there are to be
	Bytes      int64      `json:"bytes"`                // of the copies that were missing and are made
	ShortBytes int64      `json:"shortBytes,omitempty"` // of those for which no worker has room
	Error      *ErrorBody `json:"error,omitempty"`      // why it did not come to its end; it is tried again
}

// ReplicasRequest is the body of PUT /v1/datasets/{name}/replicas.
type ReplicasRequest struct {
	Replicas int `json:"replicas"` // 1 to 16
}

// Tally counts files and links, and their bytes.
type Tally struct {
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"`
}

// ChangeCounts compares generation To with generation From. Bytes are those
// of To, of what was removed those of From.
type ChangeCounts struct {
	From    int   `json:"from"`
	To      int   `json:"to"`
	Added   Tally `json:"added"`
	Changed Tally `json:"changed"`
	Removed Tally `json:"removed"`
}

// DatasetChanges is GET /v1/datasets/{name}/changes.
type DatasetChanges struct {
	Name string `json:"name"`
	ChangeCounts
	Paths []PathChange `json:"paths"`          // the first of them, by path
	More  bool         `json:"more,omitempty"` // there are more paths
}

// PathChange is one path that is not the same in both generations. Folders,
// which end in a slash, are named only if they are empty.
type PathChange struct {
	Path     string `json:"path"`               // relative to the mount, bytes that are not UTF-8 percent-escaped
	Change   string `json:"change"`             // added, changed, removed
	Bytes    int64  `json:"bytes,omitempty"`    // in To
	OldBytes int64  `json:"oldBytes,omitempty"` // in From
}

// Status is GET /v1/status.
type Status struct {
	Jobs     []JobLine     `json:"jobs"`
	Workers  []WorkerInfo  `json:"workers"`
	Datasets []DatasetInfo `json:"datasets"`
}

// AddRoot is one URI of a new dataset and the folder it is joined under.
type AddRoot struct {
	Folder string `json:"folder,omitempty"`
	ufs.Location
}

// AddDatasetRequest is the body of POST /v1/datasets.
type AddDatasetRequest struct {
	Name          string    `json:"name"`
	Roots         []AddRoot `json:"roots"`
	MaxAgeSeconds float64   `json:"maxAgeSeconds,omitempty"`
	// SyncEverySeconds lists it again on schedule: 60 to 366 days; 0 = not.
	SyncEverySeconds float64 `json:"syncEverySeconds,omitempty"`
	// Replicas is how many workers hold each shard, 1 to 16; 0 = 1.
	Replicas int `json:"replicas,omitempty"`
	// Readers are who may read it besides its owner and admins: users, and groups as
	// @group. Absent = everybody, empty = nobody else.
	Readers []string `json:"readers,omitzero"`
	Eviction
	// Nonce tells a repetition, after the answer broke off, from another add of
	// the same name: only its own add is answered once the name is registered.
	Nonce string `json:"nonce,omitempty"`
}

// SyncRequest is the body of POST /v1/datasets/{name}/sync: empty, or, after the
// answer broke off, what it said it followed.
type SyncRequest struct {
	Following
}

// Following says which listing a stream follows, for who asks again when it
// breaks off.
type Following struct {
	Run  string `json:"run,omitempty"`  // of the listing; "" = begin one, or join one that runs
	From int    `json:"from,omitempty"` // the generation that was current when it was asked for
}

// ScheduleRequest is the body of PUT /v1/datasets/{name}/schedule.
type ScheduleRequest struct {
	SyncEverySeconds float64 `json:"syncEverySeconds"` // as in AddDatasetRequest
}

// ListProgress counts a running listing.
type ListProgress struct {
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"`
	Pages   int64 `json:"pages"`
}

// Event is one line of a stream (application/x-ndjson). Exactly one field is
// set; Error, Dataset and Certificate end the stream.
type Event struct {
	Following   *Following     `json:"following,omitempty"`
	Listing     *ListProgress  `json:"listing,omitempty"`
	Load        *LoadProgress  `json:"load,omitempty"`
	Job         *JobStatus     `json:"job,omitempty"`
	Dataset     *DatasetDetail `json:"dataset,omitempty"`
	Certificate *Certificate   `json:"certificate,omitempty"`
	Check       *CheckProgress `json:"check,omitempty"`
	Error       *ErrorBody     `json:"error,omitempty"`
}

// NotForAnother is what a refusal says of a hook that is no admin, and claims for a
// user: the claim may be its own then. All other refusals are the user's.
const NotForAnother = "may not claim for another"

// ErrorBody is the body of every answer that is not 2xx.
type ErrorBody struct {
	Kind    string `json:"kind"` // stoker.Kind by name
	Message string `json:"message"`
}

// LoadRequest is the body of PUT /v1/loads/{plan}/{part}.
type LoadRequest struct {
	Plan stoker.ID `json:"plan"`
	Part int       `json:"part"`
	// Copies: others have its shards, and only from them they come.
	Copies bool `json:"copies,omitempty"`
}

// LoadProgress is how far a load is; the last line of its stream has Done.
type LoadProgress struct {
	Run           string    `json:"run"`        // of this load: another one began anew, with what was on the disk
	StartBytes    int64     `json:"startBytes"` // object bytes that were resident when it began
	Cursor        int       `json:"cursor"`     // shards of the part that are whole
	Shards        int       `json:"shards"`
	Bytes         int64     `json:"bytes"` // object bytes of the part that are resident
	TotalBytes    int64     `json:"totalBytes"`
	UFSRequests   int64     `json:"ufsRequests"` // spent by this load so far, over restarts of the stream
	UFSBytes      int64     `json:"ufsBytes"`
	CopiedBytes   int64     `json:"copiedBytes,omitempty"` // from older generations: of them the UFS was not asked
	Refetched     Refetched `json:"refetched"`
	WaitingSince  time.Time `json:"waitingSince,omitzero"` // since then the UFS has not answered
	Done          bool      `json:"done,omitempty"`
	FailedObjects int       `json:"failedObjects,omitempty"`
	Failed        []Failure `json:"failed,omitempty"` // with Done: at most 1000
	// Earlier is what runs of the same part spent before this one, on a worker that
	// was killed, perhaps: nil if this is the first, or nothing is known of it.
	Earlier *LoadSpent `json:"earlier,omitempty"`
}

// LoadSpent is what one run of a load has cost, or several, one after the other.
type LoadSpent struct {
	Run         string    `json:"run"` // the first one
	UFSRequests int64     `json:"ufsRequests"`
	UFSBytes    int64     `json:"ufsBytes"`
	Refetched   Refetched `json:"refetched"`
	Died        int64     `json:"died"` // of Refetched.Lost, what a run had and the next one did not find
}

// Spent is what the load has cost, with the runs before it.
func (p *LoadProgress) Spent() LoadSpent {
	s := LoadSpent{Run: p.Run}
	if p.Earlier != nil {
		s = *p.Earlier
	}
	s.UFSRequests, s.UFSBytes = s.UFSRequests+p.UFSRequests, s.UFSBytes+p.UFSBytes
	s.Refetched.Add(p.Refetched)
	return s
}

// ReserveRequest is the body of PUT /v1/reservations/{plan}/{part}.
type ReserveRequest struct {
	Plan   stoker.ID `json:"plan"`
	Part   int       `json:"part"`
	Leases []Lease   `json:"leases,omitempty"` // placed with the grant, so that nothing falls between
	// Copies: for a load of copies, whose promise ends with the worker's life.
	Copies bool `json:"copies,omitempty"`
	// Spare: only of space that nobody uses; nothing is evicted for it.
	Spare bool `json:"spare,omitempty"`
	// Replaces is a plan whose promise to the same part ends with this one.
	Replaces stoker.ID `json:"replaces,omitzero"`
}

// ReserveReport is the answer: what the worker granted.
type ReserveReport struct {
	NeededBytes   int64 `json:"neededBytes"` // not yet on its disk
	ResidentBytes int64 `json:"residentBytes"`
}

// Lease is one hold on a dataset's data on one worker.
type Lease struct {
	Holder     string    `json:"holder"` // job id
	Owner      string    `json:"owner"`  // principal
	Manifest   stoker.ID `json:"manifest"`
	TTLSeconds float64   `json:"ttlSeconds"` // counted from its arrival
	// EndsSeconds, of a pin, is when it ends even if it is renewed no more and
	// nobody says so; counted from its arrival, 0 = it does not.
	EndsSeconds  float64   `json:"endsSeconds,omitempty"`
	GraceSeconds float64   `json:"graceSeconds,omitempty"` // after its end the data goes last
	Reason       string    `json:"reason,omitempty"`       // of a pin; "" = it is a job's lease
	Until        time.Time `json:"until,omitzero"`         // of a pin, for people
}

// LeaseRequest is the body of PUT /v1/leases: all leases of the sender's
// jobs, renewed in one call. Drop names holders whose leases end now.
type LeaseRequest struct {
	Leases []Lease  `json:"leases"`
	Drop   []string `json:"drop,omitempty"`
	// Partial: these are not all; no lease ends because it is not among them.
	Partial bool `json:"partial,omitempty"`
	// Wishes of loads, which stand until others of the same manifest come.
	Wishes []LoadWish `json:"wishes,omitempty"`
}

// LoadWish is what those who wait for a manifest wish of its load.
type LoadWish struct {
	Manifest stoker.ID `json:"manifest"`
	// LimitBytesPerSecond is what all workers together may read of it from its
	// stores while no reader waits; 0 = no limit.
	LimitBytesPerSecond int64 `json:"limitBytesPerSecond,omitempty"`
	Rank                int64 `json:"rank,omitempty"` // among other loads: the highest is served first
}

// RulesRequest is the body of PUT /v1/rules on a worker: how datasets want their
// data to be evicted. All: the rules of those that are not among them end.
type RulesRequest struct {
	Rules []EvictionRule `json:"rules"`
	All   bool           `json:"all,omitempty"`
}

// EvictionRule is how a dataset wants its data to be evicted.
type EvictionRule struct {
	Dataset   string      `json:"dataset"`
	Manifests []stoker.ID `json:"manifests"` // its latest generations
	Eviction
}

// Equal compares all of two rules.
func (r EvictionRule) Equal(o EvictionRule) bool {
	return r.Dataset == o.Dataset && r.Eviction == o.Eviction && slices.Equal(r.Manifests, o.Manifests)
}

// Eviction is how data of a dataset goes that nobody holds.
type Eviction struct {
	Evict string `json:"evict,omitempty"` // keep or lfu; "" and auto: as its reads are
	// TTLSeconds is how long data stays that nobody holds or reads; 0 = as each
	// worker's --evict-idle says, less = until its space is needed.
	TTLSeconds float64 `json:"ttlSeconds,omitempty"`
}

// IsDefault reports whether it says nothing.
func (e Eviction) IsDefault() bool { return (e.Evict == "" || e.Evict == "auto") && e.TTLSeconds == 0 }

// EvictionRequest is the body of PUT /v1/datasets/{name}/eviction: what is
// absent stays.
type EvictionRequest struct {
	Evict      *string  `json:"evict,omitempty"`
	TTLSeconds *float64 `json:"ttlSeconds,omitempty"`
}

// VerifyRequest is the body of POST /v1/verify on a worker. A worker reports
// only on the shards it holds.
type VerifyRequest struct {
	Manifest stoker.ID `json:"manifest"`
	Deep     bool      `json:"deep,omitempty"`
}

// ShardReport is what a worker truly has of one shard.
type ShardReport struct {
	Shard   uint32 `json:"shard"`   // number in the manifest
	Present []byte `json:"present"` // bitmap of blocks, least bit first; nil = all
	Corrupt []int  `json:"corrupt,omitempty"`
}

// VerifyReport is the answer to VerifyRequest.
type VerifyReport struct {
	Worker string        `json:"worker"`
	Shards []ShardReport `json:"shards"`
	Failed []Failure     `json:"failed,omitempty"` // why objects were not brought in by the last loads here
	// ReadBlocks and ReadBytes, of a deep one, were read again and match their
	// checksums.
	ReadBlocks int64 `json:"readBlocks,omitempty"`
	ReadBytes  int64 `json:"readBytes,omitempty"`
}

// CheckProgress is how far a deep verification is: object bytes that were read
// again, of those to read. Copies count each.
type CheckProgress struct {
	Bytes      int64 `json:"bytes"`
	TotalBytes int64 `json:"totalBytes"`
}

// EvictRequest is the body of POST /v1/evict on a worker, and of
// POST /v1/datasets/{name}/evict on the controller (Manifest empty there).
type EvictRequest struct {
	Manifest stoker.ID `json:"manifest,omitzero"`
	Force    bool      `json:"force,omitempty"`
}

// EvictReport says what an eviction freed.
type EvictReport struct {
	Shards int      `json:"shards"`
	Bytes  int64    `json:"bytes"`
	Missed []string `json:"missed,omitempty"` // workers that did not answer: what they have stays
}

// MountRequest is the body of POST /v1/mounts on a worker's socket.
type MountRequest struct {
	Dataset    string    `json:"dataset"`           // for messages and the mount table
	Manifest   stoker.ID `json:"manifest,omitzero"` // zero = resolve Dataset, Generation in the registry
	Generation int       `json:"generation,omitempty"`
	Dir        string    `json:"dir"`              // absolute
	View       string    `json:"view,omitempty"`   // auto|tree|kernel; of a mounted view, what it is
	UID        *uint32   `json:"uid,omitempty"`    // nil = the caller's
	GID        *uint32   `json:"gid,omitempty"`    // nil = the caller's
	Umask      *uint32   `json:"umask,omitempty"`  // nil = 0022, or 0077 if not everybody may read the dataset
	Holder     string    `json:"holder,omitempty"` // job the mount belongs to
	Own        bool      `json:"own,omitempty"`    // Dir was made for this mount: it goes with it if its job is killed
	// KernelReadAheadBytes is what the kernel reads ahead in each open file, and around
	// each fault of a mapped one: 0 = nothing, MostKernelReadAhead at most. Absent: 4 MiB, or
	// 1 MiB of a kernel view of which at least half is on this node.
	KernelReadAheadBytes *int64 `json:"kernelReadAheadBytes,omitempty"`
	// Sampler is the order in which the view is read, as in ClaimRequest; Selection is
	// which files it is the order of: absent = all.
	Sampler   string     `json:"sampler,omitempty"`
	Selection *Selection `json:"selection,omitempty"`
	// For is the user for whom root mounts, who must be one that may read the dataset.
	// Absent: root answers for it.
	For string `json:"for,omitempty"`
}

// MostKernelReadAhead is the most that the kernel may be told to read ahead, in bytes.
const MostKernelReadAhead = 64 << 20

// ReadAs says in which order the view is read, and of which files that is the order.
// Without a sampler it says nothing.
func (r *MountRequest) ReadAs(sampler string, some *Selection) {
	if sampler != "" {
		r.Sampler, r.Selection = sampler, some
	}
}

// KeepTo keeps the view of private data to its owner.
func (r *MountRequest) KeepTo(private bool) {
	if umask := uint32(0o077); private {
		r.Umask = &umask
	}
}

// MountInfo is one mounted view of a worker.
type MountInfo struct {
	MountRequest
	State    string    `json:"state"`             // mounted
	Why      string    `json:"why,omitempty"`     // why View is that kind
	ListedAt time.Time `json:"listedAt,omitzero"` // of the generation, where the worker resolved it
}

// WorkerStatus is GET /v1/status on a worker.
type WorkerStatus struct {
	WorkerInfo
	Mounts    []MountInfo       `json:"mounts"`
	Leases    []Lease           `json:"leases"`
	Manifests []ManifestHolding `json:"manifests"`
	Reads     ReadCounters      `json:"reads"`
}

// ManifestHolding is what a worker holds of one manifest.
type ManifestHolding struct {
	Manifest stoker.ID `json:"manifest"`
	Dataset  string    `json:"dataset"`
	Shards   int       `json:"shards"` // whole ones
	Bytes    int64     `json:"bytes"`  // object bytes resident
	Holders  []string  `json:"holders"`
	// WaitingSince is since when the UFS does not answer the loads of it.
	WaitingSince time.Time `json:"waitingSince,omitzero"`
	// Check is how far a deep verification is that runs.
	Check *CheckProgress `json:"check,omitempty"`
	// Objects are those that are whole in what is here; one of several shards
	// counts with its end.
	Objects int64        `json:"objects"`
	Load    *HoldingLoad `json:"load,omitempty"` // the loads that run
	Plan    stoker.ID    `json:"plan,omitzero"`  // of the last load here
}

// HoldingLoad is how far the loads of a manifest are on one worker.
type HoldingLoad struct {
	Bytes         int64 `json:"bytes"`      // object bytes of its part that are resident
	TotalBytes    int64 `json:"totalBytes"` // of its part
	UFSBytes      int64 `json:"ufsBytes"`
	UFSRequests   int64 `json:"ufsRequests"`
	FailedObjects int   `json:"failedObjects,omitempty"`
}

// FailurePage is GET /v1/datasets/{name}/failed, and GET
// /v1/manifests/{manifest}/failed on a worker.
type FailurePage struct {
	Failed []Failure `json:"failed"`         // by path
	Next   string    `json:"next,omitempty"` // ask for those after this path; absent = there are no more
	Total  int       `json:"total"`          // on a worker all it knows of; of a dataset the sum over the workers
}
