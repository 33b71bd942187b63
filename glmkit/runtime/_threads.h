/* Share work among threads that are kept for it; see _threads.c. */
#ifndef GLMKIT_THREADS_H
#define GLMKIT_THREADS_H

/* Do one piece of some work; several threads call it at once, with different pieces. */
typedef void (*Piece)(void *work, long piece);

/* Do pieces 0 to pieces - 1, the last ones first, on up to so many threads; return when all are done. */
void share_out(Piece piece, void *work, long pieces, int threads);

#endif
