/* What the files of the matrix kernels share; see _kernels.c. */
#ifndef GLMKIT_KERNELS_H
#define GLMKIT_KERNELS_H

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#include <stdint.h>
#include "_threads.h"
#define HAVE_KERNELS 1
#define AVX2 __attribute__((target("avx2,fma,f16c")))

enum { GROUP = 32, BLOCK = 8 };
enum { WRITE, ADD, GATE }; /* an output o becomes y = o, y += o, or y = silu(first half) * second half */
enum { NIBBLES = 160, BYTES = 272 }; /* a packed group of int4, of int8 */

#define REST (1.0f / 65534) /* of 32 bits, the second half counts in this part of the first's steps */

typedef struct {
    const uint8_t *packed;
    const float *x, *norm;    /* (M, K); (K), or NULL */
    float eps;
    float *y;                 /* (M, N); (M, N / 2) for GATE */
    long m, groups;           /* groups: K / 32 */
    int bits, width, then;    /* bits of the matrix: 4 or 8; of x: 8, 16 or 32; WRITE, ADD or GATE */
    long blocks;              /* of y */
    uint8_t *rounded;         /* a group of all vectors of a tile, then the next group: see _round.c */
    float *factors;           /* beside each such group: its step, and its sum */
    long tile, pairs, run, runs, pieces; /* how the work is cut: see _product.c */
    Team team;                /* whose threads do it; NULL: ours */
} Product;

/* Bytes of a rounded group of a vector. */
static inline long group_bytes(const Product *p) { return p->width * (GROUP / 8); }

/* Vectors of the tile that begins with vector `first`. */
static inline long tile_count(const Product *p, long first) {
    return first + p->tile < p->m ? p->tile : p->m - first;
}

AVX2 static inline __m256 half8(const uint8_t *at) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at));
}

/* Set an error and return 0 if there is no kernel for a matrix (n, k). */
int matrix_fits(long n, long k);

/* The same for multiplying m vectors by it. */
int product_fits(long m, long n, long k, int bits, int width, int then);

/* Round vectors 8 * piece to 8 * piece + 7 of a product. */
enum { ROUNDED = 8 };
void round_piece(void *product, long piece);

/* Multiply; 0 where memory ran out. */
int multiply_all(Product *p, int threads);

/* Lay a matrix (n, 32 * groups) out; `least` is NULL for int8. */
void pack_all(const uint8_t *weight, const uint16_t *scale, const uint16_t *least, long n, long groups,
              uint8_t *out);

/* Write a packed matrix (n, k) as ordinary numbers. */
void expand_all(const uint8_t *packed, int bits, long n, long k, float *out);
#endif
#endif
