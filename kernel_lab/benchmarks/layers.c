/* An overlay for one container: its own directories, the mount in the child, and all of it away again. */
#define _GNU_SOURCE
#include "floor.h"

#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

void make_overlay(struct overlay *o, const char *folder, const char *lower)
{
    static unsigned count;
    snprintf(o->top, sizeof o->top, "%s/floor-%d-%u", folder, getpid(), count++);
    snprintf(o->upper, sizeof o->upper, "%s/upper", o->top);
    snprintf(o->work, sizeof o->work, "%s/work", o->top);
    snprintf(o->merged, sizeof o->merged, "%s/merged", o->top);
    /* In a user namespace overlay keeps its marks in user.* attributes; what is removed at once needs no fsync. */
    snprintf(o->options, sizeof o->options, "userxattr,volatile,index=off,lowerdir=%s,upperdir=%s,workdir=%s", lower, o->upper, o->work);
    need(mkdir(o->top, 0755), o->top);
    need(mkdir(o->upper, 0755), o->upper);
    need(mkdir(o->work, 0755), o->work);
    need(mkdir(o->merged, 0755), o->merged);
}

const char *mount_overlay(const struct overlay *o)
{
    need(mount("overlay", o->merged, "overlay", 0, o->options), o->options);
    return o->merged;
}

/* The command of a benchmark writes nothing, so that the upper directory is empty. */
void remove_overlay(const struct overlay *o)
{
    /* Overlay's own, which it leaves behind. */
    static const char *const left[] = {"incompat/volatile/dirty", "incompat/volatile", "incompat", ""};
    char path[2 * PATH_MAX];
    for (unsigned i = 0; i < sizeof left / sizeof *left; i++) {
        snprintf(path, sizeof path, "%s/%s/%s", o->work, "work", left[i]);
        if (i ? rmdir(path) : unlink(path))
            die(path);
    }
    need(rmdir(o->work), o->work);
    need(rmdir(o->upper), o->upper);
    need(rmdir(o->merged), o->merged);
    need(rmdir(o->top), o->top);
}
