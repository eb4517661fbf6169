/* A long cable for network namespaces: joins two interfaces and passes frames on late, or not at all.
 *
 *     delay_link INTERFACE INTERFACE [NAME=NUMBER ...]
 *
 * Kernels are often built without netem, which would do this. Both directions get the same treatment, each with counters
 * and a random sequence of its own. The parameters (see `parameters` below) can be changed while it runs: a line
 * "NAME=NUMBER" on standard input. Every line, an empty one too, is answered by one line of JSON with the counters; the
 * end of standard input ends the program. In each direction, at any time:
 *
 *     received + duplicated = forwarded + waiting + lost + queue_full + too_large + not_sent
 *
 * `overflowed` counts what the kernel dropped before we could receive it: if it grows, this machine is too slow for the
 * experiment.
 *
 * Only finished frames are for cables: the interfaces that send to us must make checksums and cut superpackets
 * themselves (transmit checksum offload off, which turns segmentation offload off with it).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    BATCH = 64,                  /* frames per system call */
    TURNS = 16,                  /* batches taken in or given out before it is the turn of the others */
    FRAME_LIMIT = 9000 + 18,     /* bytes: a jumbo packet, Ethernet header, VLAN tag */
    WAITING_LIMIT = 1 << 18,     /* frames on the cable, whatever the queue's limit in bytes says */
    SOCKET_BUFFER = 32 << 20,    /* bytes */
};

static const uint64_t MILLION = 1000000, SECOND = 1000000000; /* SECOND: ns */

/* While frames flow, the link wakes this often, ns, and not for each frame: a wake-up costs several times what a frame
 * does. So a frame may come out this much late, twice. */
static const uint64_t TICK = 100000;

/* What the cable does. All are settable by name. */
static uint64_t delay;     /* us, one way */
static uint64_t loss;      /* parts per million, as are the next three */
static uint64_t duplicate;
static uint64_t corrupt;   /* one bit flipped behind the Ethernet header */
static uint64_t reorder;   /* held back by `hold`, so that later ones overtake */
static uint64_t hold = 1000; /* us */
static uint64_t rate;      /* bytes/s, Ethernet header included; 0: no limit */
static uint64_t queue;     /* bytes that may wait for their turn at `rate`; 0: no limit */
static uint64_t seed = 1;

static const struct {
    const char *name;
    uint64_t *value;
} parameters[] = {
    {"delay", &delay},     {"loss", &loss}, {"duplicate", &duplicate}, {"corrupt", &corrupt}, {"reorder", &reorder},
    {"hold", &hold},       {"rate", &rate}, {"queue", &queue},         {"seed", &seed},
};
enum { PARAMETERS = sizeof parameters / sizeof parameters[0] };

struct frame {
    uint64_t due;      /* ns, when it comes out at the other end */
    uint64_t sequence; /* keeps the order of those due at once */
    size_t size;
    unsigned char bytes[];
};

struct direction {
    int from, to; /* packet sockets */
    const char *from_name, *to_name;
    struct frame **heap; /* `waiting` frames, the first due on top */
    size_t waiting;
    uint64_t free_at; /* ns, when the transmitter has sent all that it took on */
    uint64_t sequence, random;
    uint64_t received, duplicated, forwarded, lost, queue_full, too_large, not_sent; /* see the top */
    uint64_t corrupted, reordered, overflowed;
};

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
}

/* splitmix64: as good as needed, any seed will do, and the same run again from the same seed. */
static uint64_t draw(struct direction *direction) {
    uint64_t z = direction->random += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static int happens(struct direction *direction, uint64_t parts_per_million) {
    return parts_per_million && draw(direction) % MILLION < parts_per_million;
}

static int before(const struct frame *a, const struct frame *b) {
    return a->due != b->due ? a->due < b->due : a->sequence < b->sequence;
}

static void push(struct direction *direction, struct frame *frame) {
    size_t at = direction->waiting++;
    while (at && before(frame, direction->heap[(at - 1) / 2])) {
        direction->heap[at] = direction->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    direction->heap[at] = frame;
}

static struct frame *pop(struct direction *direction) {
    struct frame **heap = direction->heap, *first = heap[0], *last = heap[--direction->waiting];
    size_t at = 0, child;
    while ((child = 2 * at + 1) < direction->waiting) {
        if (child + 1 < direction->waiting && before(heap[child + 1], heap[child]))
            child++;
        if (!before(heap[child], last))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return first;
}

static int open_interface(const char *name) {
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
    const int on = 1, size = SOCKET_BUFFER;
    int descriptor = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (descriptor < 0)
        fail("packet socket");
    address.sll_ifindex = (int)if_nametoindex(name);
    if (!address.sll_ifindex)
        fail(name);
    if (setsockopt(descriptor, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) ||
        setsockopt(descriptor, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) ||
        setsockopt(descriptor, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on) ||
        setsockopt(descriptor, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof on))
        fail("packet socket options");
    if (bind(descriptor, (struct sockaddr *)&address, sizeof address))
        fail("bind");
    return descriptor;
}

/* When a frame that came at `time` has left the transmitter; 0 if the queue in front of it is full. */
static uint64_t transmitted(struct direction *direction, uint64_t time, size_t frame_size) {
    uint64_t backlog;
    if (!rate)
        return time;
    if (direction->free_at < time)
        direction->free_at = time;
    backlog = (uint64_t)((double)(direction->free_at - time) * (double)rate / (double)SECOND);
    if (queue && backlog + frame_size > queue)
        return 0;
    direction->free_at += (uint64_t)((double)frame_size * (double)SECOND / (double)rate);
    return direction->free_at;
}

/* Flips one bit. Of UDP over IPv4 in the payload, and the checksum goes: the receiving program has to find the damage.
 * All else is damaged anywhere behind the Ethernet header, for the kernel's checksums to find. */
static void damage(struct direction *direction, struct frame *frame) {
    enum { IP_SIZE = 20, UDP_SIZE = 8, PLAIN_IPV4 = 0x45, PROTOCOL = 9, CHECKSUM = IP_SIZE + 6 };
    unsigned char *packet = frame->bytes + ETH_HLEN;
    size_t start = ETH_HLEN;
    uint64_t bit;
    if (frame->size > ETH_HLEN + IP_SIZE + UDP_SIZE && packet[0] == PLAIN_IPV4 && packet[PROTOCOL] == IPPROTO_UDP) {
        packet[CHECKSUM] = packet[CHECKSUM + 1] = 0;
        start += IP_SIZE + UDP_SIZE;
    }
    if (frame->size <= start)
        return;
    bit = draw(direction) % ((frame->size - start) * 8);
    frame->bytes[start + bit / 8] ^= (unsigned char)(1u << bit % 8);
    direction->corrupted++;
}

static void put(struct direction *direction, const unsigned char *bytes, size_t size, uint64_t time) {
    struct frame *frame;
    uint64_t due = transmitted(direction, time, size);
    if (!due || direction->waiting == WAITING_LIMIT) {
        direction->queue_full++;
        return;
    }
    frame = malloc(sizeof *frame + size);
    if (!frame)
        fail("memory");
    frame->size = size;
    frame->sequence = direction->sequence++;
    memcpy(frame->bytes, bytes, size);
    frame->due = due + delay * 1000;
    if (happens(direction, reorder)) {
        frame->due += hold * 1000;
        direction->reordered++;
    }
    if (happens(direction, corrupt))
        damage(direction, frame);
    push(direction, frame);
}

/* Receives what has come; how many frames, at most BATCH. */
static int take_in(struct direction *direction) {
    static unsigned char buffers[BATCH][FRAME_LIMIT];
    struct mmsghdr messages[BATCH];
    struct iovec vectors[BATCH];
    uint64_t time;
    int count;
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < BATCH; i++) {
        vectors[i] = (struct iovec){buffers[i], sizeof buffers[i]};
        messages[i].msg_hdr.msg_iov = &vectors[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    count = recvmmsg(direction->from, messages, BATCH, MSG_DONTWAIT, NULL);
    if (count < 0) {
        if (errno != EAGAIN && errno != EINTR && errno != ENETDOWN)
            fail("receive");
        return 0;
    }
    time = now();
    for (int i = 0; i < count; i++) {
        direction->received++;
        if (messages[i].msg_hdr.msg_flags & MSG_TRUNC) {
            direction->too_large++;
            continue;
        }
        if (happens(direction, loss)) {
            direction->lost++;
            continue;
        }
        put(direction, buffers[i], messages[i].msg_len, time);
        if (happens(direction, duplicate)) {
            direction->duplicated++;
            put(direction, buffers[i], messages[i].msg_len, time);
        }
    }
    return count;
}

/* Sends what is due; how many frames, at most BATCH. */
static int give_out(struct direction *direction) {
    struct mmsghdr messages[BATCH];
    struct iovec vectors[BATCH];
    struct frame *frames[BATCH];
    uint64_t time = now();
    int count = 0, done = 0;
    memset(messages, 0, sizeof messages);
    while (count < BATCH && direction->waiting && direction->heap[0]->due <= time) {
        struct frame *frame = frames[count] = pop(direction);
        vectors[count] = (struct iovec){frame->bytes, frame->size};
        messages[count].msg_hdr.msg_iov = &vectors[count];
        messages[count].msg_hdr.msg_iovlen = 1;
        count++;
    }
    while (done < count) {
        int sent = sendmmsg(direction->to, messages + done, (unsigned)(count - done), MSG_DONTWAIT);
        if (sent > 0) {
            direction->forwarded += (uint64_t)sent;
            done += sent;
        } else { /* an interface that is down, or a frame longer than its MTU: this one is gone, the next may pass */
            direction->not_sent++;
            done++;
        }
    }
    for (int i = 0; i < count; i++)
        free(frames[i]);
    return count;
}

static void count_overflow(struct direction *direction) {
    struct tpacket_stats statistics; /* reading sets the kernel's to zero */
    socklen_t size = sizeof statistics;
    if (getsockopt(direction->from, SOL_PACKET, PACKET_STATISTICS, &statistics, &size) == 0)
        direction->overflowed += statistics.tp_drops;
}

static void report(struct direction directions[2]) {
    printf("[");
    for (int i = 0; i < 2; i++) {
        struct direction *each = &directions[i];
        count_overflow(each);
        printf("%s{\"from\": \"%s\", \"to\": \"%s\", \"received\": %lu, \"forwarded\": %lu, \"waiting\": %zu, \"lost\": %lu,"
               " \"duplicated\": %lu, \"corrupted\": %lu, \"reordered\": %lu, \"queue_full\": %lu, \"too_large\": %lu,"
               " \"not_sent\": %lu, \"overflowed\": %lu}",
               i ? ", " : "", each->from_name, each->to_name, each->received, each->forwarded, each->waiting, each->lost,
               each->duplicated, each->corrupted, each->reordered, each->queue_full, each->too_large, each->not_sent,
               each->overflowed);
    }
    printf("]\n");
    fflush(stdout);
}

static void set(const char *text) {
    const char *sign = strchr(text, '=');
    char *end;
    for (int i = 0; sign && i < PARAMETERS; i++)
        if (strlen(parameters[i].name) == (size_t)(sign - text) && !strncmp(parameters[i].name, text, (size_t)(sign - text))) {
            uint64_t value = strtoull(sign + 1, &end, 10);
            if (end != sign + 1 && (*end == '\0' || *end == '\n')) {
                *parameters[i].value = value;
                return;
            }
        }
    fprintf(stderr, "delay_link: not NAME=NUMBER with a known name: %s\n", text);
    exit(2);
}

/* 0 at the end of standard input. Lines are short and come one at a time: whoever writes waits for the answer. */
static int obey(struct direction directions[2]) {
    char line[128];
    ssize_t size = read(STDIN_FILENO, line, sizeof line - 1);
    if (size <= 0)
        return 0;
    line[size] = '\0';
    if (line[0] != '\n')
        set(line);
    report(directions);
    return 1;
}

int main(int count, char **words) {
    struct direction directions[2] = {0};
    if (count < 3) {
        fprintf(stderr, "usage: delay_link INTERFACE INTERFACE [NAME=NUMBER ...]\n");
        return 2;
    }
    for (int i = 3; i < count; i++)
        set(words[i]);
    prctl(PR_SET_TIMERSLACK, 1); /* ns: a frame must not come later than it was told */
    for (int i = 0; i < 2; i++) {
        directions[i].from = open_interface(words[1 + i]);
        directions[i].from_name = words[1 + i];
        directions[i].to_name = words[2 - i];
        directions[i].random = seed + (uint64_t)i;
        directions[i].heap = malloc(WAITING_LIMIT * sizeof *directions[i].heap);
        if (!directions[i].heap)
            fail("memory");
    }
    directions[0].to = directions[1].from;
    directions[1].to = directions[0].from;
    int busy = 0;
    report(directions); /* the word that it is ready */
    for (;;) {
        struct pollfd events[] = {
            {.fd = STDIN_FILENO, .events = POLLIN},
            {.fd = directions[0].from, .events = POLLIN},
            {.fd = directions[1].from, .events = POLLIN},
        };
        struct timespec pause;
        uint64_t time = now(), next = time + SECOND;
        for (int i = 0; i < 2; i++)
            if (directions[i].waiting && directions[i].heap[0]->due < next)
                next = directions[i].heap[0]->due;
        if (next < time)
            next = time;
        pause = (struct timespec){(time_t)((next - time) / SECOND), (long)((next - time) % SECOND)};
        if (busy) {
            struct timespec tick = {0, (long)TICK};
            clock_nanosleep(CLOCK_MONOTONIC, 0, &tick, NULL);
            pause = (struct timespec){0, 0};
        }
        if (ppoll(events, 3, &pause, NULL) < 0 && errno != EINTR)
            fail("poll");
        busy = 0;
        if (events[0].revents && !obey(directions))
            return 0;
        for (int i = 0; i < 2; i++) {
            int count = BATCH;
            for (int turn = 0; turn < TURNS && count == BATCH; turn++)
                busy += count = take_in(&directions[i]);
            count = BATCH;
            for (int turn = 0; turn < TURNS && count == BATCH; turn++)
                busy += count = give_out(&directions[i]);
        }
    }
}
