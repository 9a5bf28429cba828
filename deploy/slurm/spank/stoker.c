/*
 * SPANK plugin of Slurm: sbatch, srun and salloc get --dataset=NAME[@GENERATION][=DIR][,...].
 *
 * Where a job is submitted it only checks the words and passes them on: job_submit.lua
 * makes #STOKER directives of them, and all else follows as of these. On a node it
 * binds each dataset that has a DIR there, read-only, in a mount namespace of each
 * task: no other job sees it, and it is gone with the task. docs/slurm.md says how to
 * install it; `make spank` builds it.
 *
 * A task never starts without what was asked for: each error ends it, if plugstack.conf
 * says `required`.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/mount.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <slurm/spank.h>

SPANK_PLUGIN(stoker, 1)

#define DEFAULT_ROOT "/run/stoker/jobs"
#define MAX_SETS 64 /* what a claim may have */
#define MAX_PLACES 8
#define MAX_NAME 63
#define MAX_GROUPS 65536

/* Of linux/mount.h, but only in newer ones. */
#ifndef MOUNT_ATTR_RDONLY
#error "the kernel's headers are too old: want those of Linux 5.12 or newer"
#endif

struct set {
	char name[MAX_NAME + 1];
	const char *dir; /* NULL: only in the job's folder */
};

/* One process serves one job, with one thread. */
static const char *root = DEFAULT_ROOT;
static const char *places[MAX_PLACES]; /* folders of root's at which users may mount */
static int n_places;
static struct set sets[MAX_SETS];
static int n_sets;
static const char *asked;   /* --dataset as it was given */
static const char *options; /* --dataset-options */

/* name_of checks NAME[@GENERATION], and keeps NAME. */
static int name_of(const char *s, char *name)
{
	size_t n = strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789._-");
	const char *rest = s + n;

	if (n == 0 || n > MAX_NAME || !(islower((unsigned char)s[0]) || isdigit((unsigned char)s[0])))
		return -1;
	if (*rest == '@') {
		size_t digits = strspn(rest + 1, "0123456789");
		if (digits == 0 || digits > 9 || rest[1] == '0')
			return -1;
		rest += 1 + digits;
	}
	if (*rest != '\0')
		return -1;
	memcpy(name, s, n);
	name[n] = '\0';
	return 0;
}

/* add takes one word of --dataset. */
static int add(char *word)
{
	struct set *set = &sets[n_sets];
	char *dir = strchr(word, '=');

	if (n_sets == MAX_SETS) {
		slurm_error("stoker: --dataset: %d datasets at most", MAX_SETS);
		return -1;
	}
	if (dir != NULL)
		*dir++ = '\0';
	if (name_of(word, set->name) != 0) {
		slurm_error("stoker: --dataset: '%s' is no dataset: write NAME, NAME@GENERATION or NAME=/folder, a name that 'stoker dataset ls' shows", word);
		return -1;
	}
	if (dir != NULL && (dir[0] != '/' || dir[1] == '\0' || strlen(dir) >= PATH_MAX)) {
		slurm_error("stoker: --dataset: %s=%s: want an absolute folder, such as %s=/data", word, dir, word);
		return -1;
	}
	for (int i = 0; i < n_sets; i++) {
		if (strcmp(sets[i].name, set->name) == 0) {
			slurm_error("stoker: --dataset: %s is named twice: once is enough", set->name);
			return -1;
		}
		if (dir != NULL && sets[i].dir != NULL && strcmp(sets[i].dir, dir) == 0) {
			slurm_error("stoker: --dataset: two datasets cannot be at %s", dir);
			return -1;
		}
	}
	set->dir = dir;
	n_sets++;
	return 0;
}

/* on_dataset is called by Slurm where the option is given, and again on each node. */
static int on_dataset(int val, const char *arg, int remote)
{
	char *copy, *word, *rest;

	(void)val;
	(void)remote;
	n_sets = 0; /* the last one counts, as of all options */
	asked = strdup(arg);
	rest = copy = strdup(arg); /* kept: sets point into it */
	if (asked == NULL || copy == NULL)
		return -1;
	while ((word = strsep(&rest, ",")) != NULL)
		if (add(word) != 0)
			return -1;
	if (n_sets == 1 && sets[0].dir == NULL && n_places > 0)
		sets[0].dir = places[0];
	return 0;
}

static int on_options(int val, const char *arg, int remote)
{
	(void)val;
	(void)remote;
	for (const char *c = arg; *c != '\0'; c++) {
		if (iscntrl((unsigned char)*c)) {
			slurm_error("stoker: --dataset-options: want one line, such as 'onmiss=wait deadline=30m'");
			return -1;
		}
	}
	options = strdup(arg);
	return options == NULL ? -1 : 0;
}

static struct spank_option dataset_option = {
	.name = "dataset",
	.arginfo = "NAME[@GENERATION][=DIR][,...]",
	.usage = "stoker: hold the job until these datasets are there; DIR: mounted there too, for the job alone",
	.has_arg = 1,
	.cb = on_dataset,
};

static struct spank_option options_option = {
	.name = "dataset-options",
	.arginfo = "'KEY=VALUE ...'",
	.usage = "stoker: more of a #STOKER line, for --dataset: onmiss=wait, deadline=30m, layout=local, path=... (of the first)",
	.has_arg = 1,
	.cb = on_options,
};

/* configure reads the words behind the plugin's name in plugstack.conf. */
static int configure(int ac, char **av)
{
	for (int i = 0; i < ac; i++) {
		if (strncmp(av[i], "root=/", 6) == 0) {
			root = av[i] + 5;
		} else if (strncmp(av[i], "place=/", 7) == 0 && n_places < MAX_PLACES) {
			places[n_places++] = av[i] + 6;
		} else {
			slurm_error("stoker: plugstack.conf: '%s': want root=/folder, or place=/folder (%d at most)", av[i], MAX_PLACES);
			return -1;
		}
	}
	return 0;
}

int slurm_spank_init(spank_t sp, int ac, char **av)
{
	if (spank_context() == S_CTX_SLURMD || spank_context() == S_CTX_JOB_SCRIPT)
		return 0;
	if (configure(ac, av) != 0)
		return -1;
	if (spank_option_register(sp, &dataset_option) != ESPANK_SUCCESS || spank_option_register(sp, &options_option) != ESPANK_SUCCESS) {
		slurm_error("stoker: --dataset cannot be registered: does another plugin of plugstack.conf have it?");
		return -1;
	}
	return 0;
}

/* Where a job is submitted: what job_submit.lua reads. */
int slurm_spank_init_post_opt(spank_t sp, int ac, char **av)
{
	(void)ac;
	(void)av;
	if (spank_context() != S_CTX_LOCAL && spank_context() != S_CTX_ALLOCATOR)
		return 0;
	if (asked == NULL) {
		if (options == NULL)
			return 0;
		slurm_error("stoker: --dataset-options: is of no use without --dataset");
		return -1;
	}
	if (spank_job_control_setenv(sp, "STOKER_DATASET", asked, 1) != ESPANK_SUCCESS ||
	    (options != NULL && spank_job_control_setenv(sp, "STOKER_DATASET_OPTIONS", options, 1) != ESPANK_SUCCESS)) {
		slurm_error("stoker: --dataset cannot be passed on to slurmctld");
		return -1;
	}
	return 0;
}

/* as_user opens a folder with the rights of the job's user, so that root's show
 * him nothing. */
static int as_user(spank_t sp, const char *dir, uid_t uid, gid_t gid)
{
	static gid_t mine[MAX_GROUPS];
	gid_t *groups = NULL;
	int n = 0, fd = -1, why;
	int n_mine = getgroups(MAX_GROUPS, mine);

	if (n_mine < 0 || spank_get_item(sp, S_JOB_SUPPLEMENTARY_GIDS, &groups, &n) != ESPANK_SUCCESS || setgroups(n, groups) != 0)
		return -1;
	if (setegid(gid) == 0 && seteuid(uid) == 0)
		fd = open(dir, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	why = errno;
	if (seteuid(0) != 0 || setegid(0) != 0 || setgroups(n_mine, mine) != 0) {
		if (fd >= 0)
			close(fd);
		return -1;
	}
	errno = why;
	return fd;
}

/* target opens the folder at which a dataset is wanted: one of the user's own, or
 * one that the site has said. Anything else could make root's programs read what the
 * user likes. */
static int target(spank_t sp, const char *dir, uid_t uid, gid_t gid)
{
	struct stat st;
	int fd, placed = 0;

	for (int i = 0; i < n_places; i++)
		placed = placed || strcmp(places[i], dir) == 0;
	fd = placed ? open(dir, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : as_user(sp, dir, uid, gid);
	if (fd < 0) {
		slurm_error("stoker: %s: %s: --dataset mounts on a folder that is there on each node", dir, strerror(errno));
		return -1;
	}
	if (fstat(fd, &st) != 0 || (!placed && st.st_uid != uid)) {
		slurm_error("stoker: %s: is not your own folder, nor a place= of plugstack.conf", dir);
		close(fd);
		return -1;
	}
	return fd;
}

/* source copies the job's mount of a dataset, read-only, to be put elsewhere. */
static int source(const char *name, uint32_t job)
{
	struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV};
	struct stat st, above;
	char folder[PATH_MAX], path[PATH_MAX];
	int fd;

	if (snprintf(folder, sizeof folder, "%s/%u", root, job) >= (int)sizeof folder || snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) {
		slurm_error("stoker: root=%s: is too long", root);
		return -1;
	}
	if (lstat(folder, &above) != 0 || lstat(path, &st) != 0 || !S_ISDIR(st.st_mode) || st.st_dev == above.st_dev) {
		slurm_error("stoker: %s is not mounted for job %u on this node: --dataset is of a whole job, not of a step; and job_submit.lua, prolog and root= must be as docs/slurm.md says",
			    name, job);
		return -1;
	}
	fd = syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	if (fd < 0 || syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &attr, sizeof attr) != 0) {
		slurm_error("stoker: %s: cannot be bound: %s (Linux 5.12 or newer is needed)", path, strerror(errno));
		if (fd >= 0)
			close(fd);
		return -1;
	}
	return fd;
}

static int bind_set(spank_t sp, const struct set *set, uint32_t job, uid_t uid, gid_t gid)
{
	int to, from, failed;

	if ((to = target(sp, set->dir, uid, gid)) < 0)
		return -1;
	if ((from = source(set->name, job)) < 0) {
		close(to);
		return -1;
	}
	failed = syscall(SYS_move_mount, from, "", to, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) != 0;
	if (failed)
		slurm_error("stoker: %s: %s cannot be mounted there: %s", set->dir, set->name, strerror(errno));
	close(from);
	close(to);
	return failed ? -1 : 0;
}

/* wanted reports whether a task needs a namespace. */
static int wanted(void)
{
	for (int i = 0; i < n_sets; i++)
		if (sets[i].dir != NULL)
			return 1;
	return 0;
}

/* In each task, as root. */
int slurm_spank_task_init_privileged(spank_t sp, int ac, char **av)
{
	/* What the node mounts later comes in, nothing of the task gets out. */
	struct mount_attr slave = {.propagation = MS_SLAVE};
	uint32_t job;
	uid_t uid;
	gid_t gid;

	(void)ac;
	(void)av;
	if (!wanted())
		return 0;
	if (spank_get_item(sp, S_JOB_ID, &job) != ESPANK_SUCCESS || spank_get_item(sp, S_JOB_UID, &uid) != ESPANK_SUCCESS ||
	    spank_get_item(sp, S_JOB_GID, &gid) != ESPANK_SUCCESS) {
		slurm_error("stoker: Slurm does not say whose job it is");
		return -1;
	}
	if (unshare(CLONE_NEWNS) != 0 || syscall(SYS_mount_setattr, AT_FDCWD, "/", AT_RECURSIVE, &slave, sizeof slave) != 0) {
		slurm_error("stoker: a task gets no mounts of its own: %s (Linux 5.12 or newer is needed)", strerror(errno));
		return -1;
	}
	for (int i = 0; i < n_sets; i++)
		if (sets[i].dir != NULL && bind_set(sp, &sets[i], job, uid, gid) != 0)
			return -1;
	return 0;
}

/* In each task, as its user, when its environment is made: a job of one dataset
 * finds it where the user wished. */
int slurm_spank_task_init(spank_t sp, int ac, char **av)
{
	char is[PATH_MAX], only[PATH_MAX];
	uint32_t job;

	(void)ac;
	(void)av;
	if (n_sets != 1 || sets[0].dir == NULL || spank_getenv(sp, "STOKER_MOUNT", is, sizeof is) != ESPANK_SUCCESS)
		return 0;
	if (spank_get_item(sp, S_JOB_ID, &job) != ESPANK_SUCCESS || snprintf(only, sizeof only, "%s/%u/%s", root, job, sets[0].name) >= (int)sizeof only)
		return -1;
	if (strcmp(is, only) != 0)
		return 0; /* there are others, by directives */
	return spank_setenv(sp, "STOKER_MOUNT", sets[0].dir, 1) == ESPANK_SUCCESS ? 0 : -1;
}
