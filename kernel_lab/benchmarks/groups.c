/* Control groups for one container: a directory in each hierarchy, and what is written into it. */
#define _GNU_SOURCE
#include "floor.h"

#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int file_in(const char *directory, const char *name, int flags)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return open(path, flags | O_CLOEXEC);
}

static int access_in(const char *directory, const char *name)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return access(path, F_OK);
}

static const char *directory_in(struct groups *g, const char *parent, unsigned number)
{
    for (int i = 0; i < g->count; i++)
        if (!strcmp(g->parents[i], parent))
            return g->directories[i];
    char *path = g->directories[g->count];
    snprintf(path, PATH_MAX, "%s/klabf-%d-%u", parent, getpid(), number);
    need(mkdir(path, 0755), path);
    g->parents[g->count++] = parent;
    return path;
}

void make_groups(struct groups *g, const struct limit *limits, int count)
{
    static unsigned number;
    g->count = 0;
    g->unified = -1;
    for (int i = 0; i < count; i++) {
        const char *directory = directory_in(g, limits[i].parent, number);
        if (!*limits[i].file)
            continue;
        int file = file_in(directory, limits[i].file, O_WRONLY);
        need(file, limits[i].file);
        need(write(file, limits[i].text, strlen(limits[i].text)), limits[i].file);
        close(file);
    }
    number++;
    for (int i = 0; i < g->count; i++) {
        int unified = !access_in(g->directories[i], "cgroup.controllers"); /* version 2 has it */
        g->files[i] = unified ? open(g->directories[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC) : file_in(g->directories[i], "cgroup.procs", O_WRONLY);
        need(g->files[i], g->directories[i]);
        if (unified)
            g->unified = i;
    }
}

void born_in(const struct groups *g, struct clone_args *how)
{
    if (g->unified >= 0) {
        how->flags |= CLONE_INTO_CGROUP;
        how->cgroup = g->files[g->unified];
    }
}

void enter_groups(const struct groups *g)
{
    for (int i = 0; i < g->count; i++)
        if (i != g->unified)
            need(write(g->files[i], "0", 1), "cgroup.procs");
}

void remove_groups(struct groups *g)
{
    for (int i = 0; i < g->count; i++) {
        close(g->files[i]);
        need(rmdir(g->directories[i]), g->directories[i]);
    }
}
