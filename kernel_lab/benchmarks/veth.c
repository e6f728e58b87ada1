/* The floor's links: rtnetlink(7) messages by hand, several in one send. */
#define _GNU_SOURCE
#include "floor.h"

#include <arpa/inet.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { MESSAGE = 1024 };

struct message { /* one behind the other */
    size_t used;
    char bytes[MESSAGE] __attribute__((aligned(4)));
};

static void *append(struct message *m, size_t size)
{
    void *here = m->bytes + m->used;
    if (m->used + NLMSG_ALIGN(size) > MESSAGE)
        die("netlink message too long");
    memset(here, 0, NLMSG_ALIGN(size));
    m->used += NLMSG_ALIGN(size);
    return here;
}

static struct nlmsghdr *begin(struct message *m, int type, int flags)
{
    struct nlmsghdr *head = append(m, sizeof *head);
    head->nlmsg_type = type;
    head->nlmsg_flags = NLM_F_REQUEST | flags;
    return head;
}

static void end(struct message *m, struct nlmsghdr *head)
{
    head->nlmsg_len = m->bytes + m->used - (char *)head;
}

static struct rtattr *attribute(struct message *m, int type, const void *data, size_t size)
{
    struct rtattr *made = append(m, RTA_LENGTH(size));
    made->rta_type = type;
    made->rta_len = RTA_LENGTH(size);
    if (size)
        memcpy(RTA_DATA(made), data, size);
    return made;
}

static void close_nest(struct message *m, struct rtattr *nest)
{
    nest->rta_len = m->bytes + m->used - (char *)nest;
}

/* The kernel works through the messages before sendto returns; a refusal is the first answer, the last one acknowledges. */
static void ask(int netlink, struct message *m, const char *what)
{
    char answer[MESSAGE] __attribute__((aligned(4)));
    struct nlmsghdr *head = (struct nlmsghdr *)answer;
    struct nlmsgerr *verdict = NLMSG_DATA(head);
    need(send(netlink, m->bytes, m->used, 0), what);
    need(recv(netlink, answer, sizeof answer, 0), what);
    if (head->nlmsg_type == NLMSG_ERROR && verdict->error) {
        errno = -verdict->error;
        die(what);
    }
}

int open_netlink(void)
{
    int made = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    need(made, "netlink socket");
    return made;
}

void make_veth(int netlink, unsigned bridge, const char *name, int pid)
{
    struct message m = {0};
    struct nlmsghdr *head = begin(&m, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK);
    struct ifinfomsg *host = append(&m, sizeof *host);
    host->ifi_flags = host->ifi_change = IFF_UP;
    attribute(&m, IFLA_IFNAME, name, strlen(name) + 1);
    attribute(&m, IFLA_MASTER, &bridge, sizeof bridge);
    struct rtattr *info = attribute(&m, IFLA_LINKINFO, NULL, 0);
    attribute(&m, IFLA_INFO_KIND, "veth", 4);
    struct rtattr *data = attribute(&m, IFLA_INFO_DATA, NULL, 0);
    struct rtattr *peer = attribute(&m, VETH_INFO_PEER, NULL, 0);
    append(&m, sizeof(struct ifinfomsg)); /* not up yet: veth_open of the inner end refuses while it has no peer */
    attribute(&m, IFLA_IFNAME, "eth0", 5);
    attribute(&m, IFLA_NET_NS_PID, &pid, sizeof pid);
    close_nest(&m, peer);
    close_nest(&m, data);
    close_nest(&m, info);
    end(&m, head);
    ask(netlink, &m, "veth pair");
}

static void add_address(struct message *m, int index, const char *text)
{
    struct in_addr address;
    char copy[64];
    snprintf(copy, sizeof copy, "%s", text);
    char *slash = strchr(copy, '/');
    int bits = slash ? atoi(slash + 1) : 32;
    if (slash)
        *slash = 0;
    if (inet_pton(AF_INET, copy, &address) != 1)
        die("address");
    struct nlmsghdr *head = begin(m, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL);
    struct ifaddrmsg *at = append(m, sizeof *at);
    at->ifa_family = AF_INET;
    at->ifa_prefixlen = bits;
    at->ifa_index = index;
    attribute(m, IFA_LOCAL, &address, sizeof address);
    attribute(m, IFA_ADDRESS, &address, sizeof address);
    end(m, head);
}

static void add_default_route(struct message *m, const char *text)
{
    struct in_addr gateway;
    if (inet_pton(AF_INET, text, &gateway) != 1)
        die("gateway");
    struct nlmsghdr *head = begin(m, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK);
    struct rtmsg *route = append(m, sizeof *route);
    route->rtm_family = AF_INET;
    route->rtm_table = RT_TABLE_MAIN;
    route->rtm_protocol = RTPROT_STATIC;
    route->rtm_scope = RT_SCOPE_UNIVERSE;
    route->rtm_type = RTN_UNICAST;
    attribute(m, RTA_GATEWAY, &gateway, sizeof gateway);
    end(m, head);
}

void set_address(int netlink, int index, const char *address, const char *gateway)
{
    struct message m = {0};
    add_address(&m, index, address);
    add_default_route(&m, gateway);
    ask(netlink, &m, "address and route");
}
