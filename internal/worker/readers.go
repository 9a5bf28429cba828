package worker

import (
	"cmp"
	"context"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
)

// mayRead lets only those mount a dataset who may read it, and makes a view of one
// that not everybody may read its owner's alone, unless he says otherwise. d is its
// registry entry; nil if the request names the manifest, whose roots are then what
// counts: whatever the request calls it. Root answers for itself, without anything
// being asked: nodes mount what a claim was granted while no store answers.
func (v *views) mayRead(ctx context.Context, uid uint32, r *api.MountRequest, d *manifest.Dataset) error {
	p := api.PrincipalOf(ctx)
	admin := uid == 0 || p.Admin
	switch {
	case r.For != "" && !admin:
		return stoker.Errorf(stoker.KindDenied, "mount", r.Dir, "only root mounts for another (%s)", r.For)
	case admin && r.For == "" && d == nil:
		return nil
	}
	roots, rs, err := v.restrictions(ctx, r, d)
	if err != nil || !rs.Cover(roots) {
		return err
	}
	if r.Umask == nil {
		private := uint32(0o077)
		r.Umask = &private
	}
	who := manifest.Reader{Name: p.Name, Admin: admin, Anonymous: p.Anonymous, In: func(group string) bool { return api.MemberOf(ctx, group) }}
	if r.For != "" {
		who = manifest.Reader{Name: r.For, In: func(group string) bool { return api.UserIn(r.For, group) }}
	}
	return rs.Check(cmp.Or(r.Dataset, r.Manifest.Short()), roots, who)
}

// restrictions finds where the data of a request lies, and what keeps data to some.
func (v *views) restrictions(ctx context.Context, r *api.MountRequest, d *manifest.Dataset) ([]manifest.Root, manifest.Restrictions, error) {
	if d != nil {
		rs, err := v.manifests.RestrictionsOf(ctx, d)
		return d.Roots, rs, err
	}
	rs, err := v.manifests.Restrictions(ctx)
	if err != nil || len(rs) == 0 {
		return nil, nil, err
	}
	m, err := v.manifests.Load(ctx, r.Manifest)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = m.Close() }() // it was only read
	return m.Roots(), rs, nil
}
