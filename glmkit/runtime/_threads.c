/* Share work among threads that are kept for it.
 *
 * A call lasts some microseconds, so waiting for a thread that the system has paused would cost a
 * hundred calls. Hence no barrier of all threads: a call ends when all pieces are done, whoever did
 * them, and the caller does pieces too. A thread without work spins shortly, then sleeps. A call has
 * as many helpers as it asks for, the first of those that there are. A fork has none of its parent's
 * threads: it begins anew, and hires its own.
 */
#include "_threads.h"

#if defined(__x86_64__) && defined(__GNUC__) && (defined(__unix__) || defined(__APPLE__))
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#define HAVE_HELPERS 1

enum { MOST_HELPERS = MOST_THREADS - 1, SPINS = 40000 };

static pthread_mutex_t calling = PTHREAD_MUTEX_INITIALIZER; /* one call at a time has helpers */
static pthread_mutex_t resting = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static Piece doing; /* what is being done; valid while a piece of it is claimed */
static void *shared;
static atomic_llong offer; /* pieces not claimed yet, and in the high bits how many may help */
static atomic_long done_pieces;
static atomic_int sleepers;
static int helpers;

enum { SEATS = 48 }; /* where the high bits of an offer begin */
#define PIECES ((1LL << SEATS) - 1)

/* Tell whether an offer has a piece for the helper of a number; the caller's is -1. */
static int is_for(long long offered, long number) {
    return (offered & PIECES) && number < offered >> SEATS;
}

/* Claim and do one piece; 0 if none was left. Whoever claims holds the call open until it is done,
 * so `doing` and `shared` cannot change in between. */
static int help_once(long number) {
    long long offered = atomic_load(&offer);
    while (is_for(offered, number))
        if (atomic_compare_exchange_weak(&offer, &offered, offered - 1)) {
            doing(shared, (long)(offered & PIECES) - 1);
            atomic_fetch_add(&done_pieces, 1);
            return 1;
        }
    return 0;
}

static void *helper(void *numbered) {
    const long number = (long)(intptr_t)numbered;
    for (;;) {
        for (int spins = 0; spins < SPINS; spins++) {
            if (help_once(number)) spins = 0;
            _mm_pause();
        }
        pthread_mutex_lock(&resting);
        atomic_fetch_add(&sleepers, 1);
        while (!is_for(atomic_load(&offer), number)) pthread_cond_wait(&wake, &resting);
        atomic_fetch_sub(&sleepers, 1);
        pthread_mutex_unlock(&resting);
    }
    return NULL;
}

/* What a fork begins with; its parent may have been in the middle of anything. */
static void begin_anew(void) {
    pthread_mutex_init(&calling, NULL);
    pthread_mutex_init(&resting, NULL);
    pthread_cond_init(&wake, NULL);
    atomic_store(&offer, 0);
    atomic_store(&sleepers, 0);
    helpers = 0;
}

static void hire(int wanted) {
    static int forks_know;
    pthread_t thread;
    if (!forks_know) forks_know = !pthread_atfork(NULL, NULL, begin_anew);
    for (; helpers < wanted && helpers < MOST_HELPERS; helpers++) {
        if (pthread_create(&thread, NULL, helper, (void *)(intptr_t)helpers)) return;
        pthread_detach(thread);
    }
}

static void do_together(Piece piece, void *work, long pieces, int threads) {
    hire(threads - 1);
    doing = piece, shared = work;
    atomic_store(&done_pieces, 0);
    atomic_store(&offer, ((long long)(threads - 1) << SEATS) + pieces);
    if (atomic_load(&sleepers)) {
        pthread_mutex_lock(&resting);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&resting);
    }
    while (help_once(-1)) continue;
    for (long spins = 0; atomic_load(&done_pieces) < pieces; spins++) {
        _mm_pause();
        if (spins > SPINS) sched_yield(); /* a helper was paused in the middle of a piece */
    }
}
#endif

void share_out(Piece piece, void *work, long pieces, int threads) {
#ifdef HAVE_HELPERS
    threads = bounded(threads);
    if (threads > 1 && pieces > 1 && !pthread_mutex_trylock(&calling)) {
        do_together(piece, work, pieces, threads);
        pthread_mutex_unlock(&calling);
        return;
    }
#endif
    while (pieces > 0) piece(work, --pieces);
}

typedef struct {
    Piece piece;
    void *work;
    long left;
} Errand;

static void do_errand(void *given) {
    Errand *errand = given;
    for (;;) {
        const long piece = __atomic_sub_fetch(&errand->left, 1, __ATOMIC_RELAXED);
        if (piece < 0) return;
        errand->piece(errand->work, piece);
    }
}

void share_out_to(Team team, Piece piece, void *work, long pieces, int threads) {
    Errand errand = {piece, work, pieces};
    threads = bounded(threads);
    if (team && threads > 1 && pieces > 1) team(do_errand, &errand, (unsigned)threads, 0);
    else share_out(piece, work, pieces, threads);
}
