/* What the files of the floor share. */
#ifndef FLOOR_H
#define FLOOR_H

#include <errno.h>
#include <limits.h>
#include <linux/sched.h>

enum { LIMITS = 16 };

void die(const char *what);
void need(long answer, const char *what);

/* veth.c */
int open_netlink(void);
void make_veth(int netlink, unsigned bridge, const char *name, int pid);
void set_address(int netlink, int index, const char *address, const char *gateway);

/* layers.c */
struct overlay {
    char top[PATH_MAX - 16], upper[PATH_MAX], work[PATH_MAX], merged[PATH_MAX], options[3 * PATH_MAX];
};
void make_overlay(struct overlay *o, const char *folder, const char *lower);
const char *mount_overlay(const struct overlay *o);
void remove_overlay(const struct overlay *o);

/* groups.c */
struct limit {
    const char *parent, *file, *text;
};
struct groups {
    int count, unified; /* unified: which of them is of version 2, or -1 */
    const char *parents[LIMITS];
    char directories[LIMITS][PATH_MAX];
    int files[LIMITS]; /* cgroup.procs of each; of version 2, the directory */
};
void make_groups(struct groups *g, const struct limit *limits, int count);
void born_in(const struct groups *g, struct clone_args *how);
void enter_groups(const struct groups *g);
void remove_groups(struct groups *g);

#endif
