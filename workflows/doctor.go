package workflows

import (
	"context"
	"errors"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"

	"stoker.dev"
)

// Server asks Temporal for its version and for the namespace, whose name comes
// back with an error, too. A namespace that is not there is NotExist.
func (c *Client) Server(ctx context.Context) (version, namespace string, err error) {
	_, err = c.temporal.WorkflowService().DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: c.namespace})
	var missing *serviceerror.NamespaceNotFound
	var other *serviceerror.NotFound
	if errors.As(err, &missing) || errors.As(err, &other) {
		return "", c.namespace, stoker.Errorf(stoker.KindNotExist, "temporal", c.address, "has no namespace %q", c.namespace)
	} else if err != nil {
		return "", c.namespace, c.told(ctx, "temporal", c.address, err)
	}
	info, err := c.temporal.WorkflowService().GetSystemInfo(ctx, &workflowservice.GetSystemInfoRequest{})
	if err != nil { // the namespace is there: that is what counts
		return "", c.namespace, nil // only its version is not known
	}
	return info.GetServerVersion(), c.namespace, nil
}
