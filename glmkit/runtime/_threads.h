/* Share work among threads that are kept for it; see _threads.c. */
#ifndef GLMKIT_THREADS_H
#define GLMKIT_THREADS_H

/* Do one piece of some work; several threads call it at once, with different pieces. */
typedef void (*Piece)(void *work, long piece);

enum { MOST_THREADS = 64 };

/* A number of threads as share_out takes it. */
static inline int bounded(int threads) {
    return threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads;
}

/* Do pieces 0 to pieces - 1, the last ones first, on up to so many threads; return when all are done. */
void share_out(Piece piece, void *work, long pieces, int threads);

/* OpenMP's GOMP_parallel: run a function on so many threads at once. */
typedef void (*Team)(void (*member)(void *), void *work, unsigned threads, unsigned flags);

/* The same by a team's threads; without one, by ours. */
void share_out_to(Team team, Piece piece, void *work, long pieces, int threads);

#endif
