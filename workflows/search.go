package workflows

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"
)

// What Temporal's own UI finds workflows by, as in StokerDataset = 'imagenet'.
// A job may have several datasets.
var (
	datasetAttribute = temporal.NewSearchAttributeKeyKeywordList("StokerDataset")
	jobAttribute     = temporal.NewSearchAttributeKeyKeyword("StokerJob")
	phaseAttribute   = temporal.NewSearchAttributeKeyKeyword("StokerPhase")
)

// maxAttribute is what the visibility stores on SQL take of one value.
const maxAttribute = 255

func attribute(s string) string {
	if len(s) > maxAttribute {
		s = s[:maxAttribute]
	}
	return strings.ToValidUTF8(s, "")
}

// attributes are those of a workflow that begins. A namespace that does not
// know them would refuse it: then there are none.
func attributes(searchable bool, job string, datasets ...string) temporal.SearchAttributes {
	if !searchable {
		return temporal.SearchAttributes{}
	}
	for i := range datasets {
		datasets[i] = attribute(datasets[i])
	}
	updates := []temporal.SearchAttributeUpdate{datasetAttribute.ValueSet(datasets)}
	if job != "" {
		updates = append(updates, jobAttribute.ValueSet(attribute(job)))
	}
	return temporal.NewSearchAttributes(updates...)
}

// showPhase keeps the phase attribute at what state says, until the workflow
// ends.
func showPhase(ctx workflow.Context, searchable bool, state func() string) {
	if !searchable {
		return
	}
	ctx, _ = workflow.NewDisconnectedContext(ctx) // a cancelled workflow has an end to show, too
	workflow.Go(ctx, func(ctx workflow.Context) {
		shown := ""
		for workflow.Await(ctx, func() bool { return state() != shown }) == nil {
			shown = state()
			if workflow.UpsertTypedSearchAttributes(ctx, phaseAttribute.ValueSet(shown)) != nil {
				return // not a name that can be set: ours can
			}
		}
	})
}

const (
	searchAgain = time.Second      // between looks whether Temporal takes the attributes by now
	searchSlow  = 30 * time.Second // the same, when it is not soon
)

// makeSearchable registers the attributes in the namespace, if they are not
// there, and waits until they can be used: a server takes seconds to know what
// it was told. Without them all works, but Temporal's UI finds less.
func (c *Client) makeSearchable(ctx context.Context) {
	warned := false
	for tries := 0; ; tries++ {
		err := c.addAttributes(ctx)
		if err == nil {
			c.searchable.Store(true)
			return
		}
		if !warned && ctx.Err() == nil && !fresh(err) {
			warned = true
			c.log.Warn("search attributes are missing: let an operator of Temporal add StokerDataset (KeywordList), StokerJob and StokerPhase (Keyword)",
				"namespace", c.namespace, "error", err)
		}
		wait := searchAgain
		if tries > 30 {
			wait = searchSlow
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// fresh reports whether Temporal has only to learn what it was told.
func fresh(err error) bool {
	var invalid *serviceerror.InvalidArgument
	return errors.As(err, &invalid)
}

// addAttributes adds those that are missing, and asks by them.
func (c *Client) addAttributes(ctx context.Context) error {
	op := c.temporal.OperatorService()
	there, err := op.ListSearchAttributes(ctx, &operatorservice.ListSearchAttributesRequest{Namespace: c.namespace})
	missing := map[string]enums.IndexedValueType{
		datasetAttribute.GetName(): datasetAttribute.GetValueType(), jobAttribute.GetName(): jobAttribute.GetValueType(),
		phaseAttribute.GetName(): phaseAttribute.GetValueType(),
	}
	for name := range there.GetCustomAttributes() {
		delete(missing, name)
	}
	if err == nil && len(missing) > 0 {
		_, err = op.AddSearchAttributes(ctx, &operatorservice.AddSearchAttributesRequest{Namespace: c.namespace, SearchAttributes: missing})
		var twice *serviceerror.AlreadyExists // another controller did it
		if errors.As(err, &twice) {
			err = nil
		}
	}
	// Who may not list or add can use what is there all the same.
	_, cerr := c.temporal.CountWorkflow(ctx, &workflowservice.CountWorkflowExecutionsRequest{
		Query: "StokerDataset = 'x' AND StokerJob = 'x' AND StokerPhase = 'x'",
	})
	if cerr == nil {
		return nil
	}
	return cmp.Or(err, cerr)
}

// notSearchable takes the attributes as missing, if that is why a start was
// refused: the caller tries again without.
func (c *Client) notSearchable(err error) bool {
	var invalid *serviceerror.InvalidArgument
	if !errors.As(err, &invalid) || !strings.Contains(strings.ToLower(err.Error()), "search attribute") || !c.searchable.CompareAndSwap(true, false) {
		return false
	}
	c.log.Warn("search attributes are gone; going on without them", "error", err)
	return true
}
