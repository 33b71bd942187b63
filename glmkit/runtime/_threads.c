/* Share work among threads that are kept for it.
 *
 * A call lasts some microseconds, so waiting for a thread that the system has paused would cost a
 * hundred calls. Hence no barrier of all threads: a call ends when all pieces are done, whoever did
 * them, and the caller does pieces too. A thread without work spins shortly, then sleeps. After a
 * fork there are no helpers left and the caller does everything.
 */
#include "_threads.h"

#if defined(__x86_64__) && defined(__GNUC__) && (defined(__unix__) || defined(__APPLE__))
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#define HAVE_HELPERS 1

enum { MOST_HELPERS = 63, SPINS = 40000 };

static pthread_mutex_t calling = PTHREAD_MUTEX_INITIALIZER; /* one call at a time has helpers */
static pthread_mutex_t resting = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static Piece doing; /* what is being done; valid while a piece of it is claimed */
static void *shared;
static atomic_long open_pieces; /* not claimed yet */
static atomic_long done_pieces;
static atomic_int sleepers;
static int helpers;

/* Claim and do one piece; 0 if none was left. Whoever claims holds the call open until it is done,
 * so `doing` and `shared` cannot change in between. */
static int help_once(void) {
    long left = atomic_load(&open_pieces);
    while (left > 0)
        if (atomic_compare_exchange_weak(&open_pieces, &left, left - 1)) {
            doing(shared, left - 1);
            atomic_fetch_add(&done_pieces, 1);
            return 1;
        }
    return 0;
}

static void *helper(void *none) {
    for (;;) {
        for (int spins = 0; spins < SPINS; spins++) {
            if (help_once()) spins = 0;
            _mm_pause();
        }
        pthread_mutex_lock(&resting);
        atomic_fetch_add(&sleepers, 1);
        while (atomic_load(&open_pieces) == 0) pthread_cond_wait(&wake, &resting);
        atomic_fetch_sub(&sleepers, 1);
        pthread_mutex_unlock(&resting);
    }
    return none;
}

static void hire(int wanted) {
    pthread_t thread;
    for (; helpers < wanted && helpers < MOST_HELPERS; helpers++) {
        if (pthread_create(&thread, NULL, helper, NULL)) return;
        pthread_detach(thread);
    }
}

static void do_together(Piece piece, void *work, long pieces, int threads) {
    hire(threads - 1);
    doing = piece, shared = work;
    atomic_store(&done_pieces, 0);
    atomic_store(&open_pieces, pieces);
    if (atomic_load(&sleepers)) {
        pthread_mutex_lock(&resting);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&resting);
    }
    while (help_once()) continue;
    for (long spins = 0; atomic_load(&done_pieces) < pieces; spins++) {
        _mm_pause();
        if (spins > SPINS) sched_yield(); /* a helper was paused in the middle of a piece */
    }
}
#endif

void share_out(Piece piece, void *work, long pieces, int threads) {
#ifdef HAVE_HELPERS
    if (threads > 1 && pieces > 1 && !pthread_mutex_trylock(&calling)) {
        do_together(piece, work, pieces, threads);
        pthread_mutex_unlock(&calling);
        return;
    }
#endif
    while (pieces > 0) piece(work, --pieces);
}
