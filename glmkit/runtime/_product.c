/* The products of packed blocks and rounded vectors; see _kernels.c for how both lie.
 *
 * Two blocks are multiplied by all vectors of a tile at once: a quarter or half of a group is unpacked
 * into eight registers, and goes through the tile. Sums of whole numbers are exact, and what is added
 * in floating point is added group by group, for every vector alone. So a vector's results do not
 * depend on the tile, or on what else is in it.
 */
#include "_kernels.h"
#include "_threads.h"

#ifdef HAVE_KERNELS
#include <stdlib.h>
#include <string.h>

enum { TILE = 64 };       /* vectors at most */
enum { FEW = 8 };         /* for so many, reading the matrix costs more than the arithmetic */
enum { AHEAD = 8192 };    /* bytes from what is multiplied to what is fetched meanwhile */
enum { RUN = 4, RUNS = 8 }; /* pairs of blocks in a piece of work for FEW; such pieces per thread */

typedef struct {
    const uint8_t *block[2]; /* the second is NULL where there is but one */
    const uint8_t *x;
    const float *factors;
    long groups, count;
} Strip;

AVX2 static inline __m256i four(const uint8_t *x) {
    int32_t both;
    memcpy(&both, x, 4);
    return _mm256_set1_epi32(both);
}

/* The columns of one part of a group, as four registers of 4 columns as bytes where x has 8 bits (the
 * group has 2 such parts), else of 2 columns as 16-bit numbers (4 parts). */
AVX2 static inline void unpack(const uint8_t *w, const int bits, const int width, int part, __m256i *out) {
    if (bits == 8) {
        for (int at = 0; at < 4; at++)
            out[at] = _mm256_cvtepi8_epi16(
                _mm_loadu_si128((const __m128i *)(w + 64 * part + 16 * at)));
    } else if (width == 8) {
        const __m256i low = _mm256_set1_epi8(15);
        for (int at = 0; at < 2; at++) {
            const __m256i both = _mm256_loadu_si256((const __m256i *)(w + 64 * part + 32 * at));
            out[2 * at] = _mm256_and_si256(both, low);
            out[2 * at + 1] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
        }
    } else {
        const __m256i low = _mm256_set1_epi16(15);
        const __m256i all = _mm256_loadu_si256((const __m256i *)(w + 32 * part));
        out[0] = _mm256_and_si256(all, low);
        out[1] = _mm256_and_si256(_mm256_srli_epi16(all, 8), low);
        out[2] = _mm256_and_si256(_mm256_srli_epi16(all, 4), low);
        out[3] = _mm256_srli_epi16(all, 12);
    }
}

/* Add the products of four registers: to 16-bit sums where x has 8 bits, which a group of int4 cannot
 * overflow (32 / 2 * 15 * 128 = 30720), else to 32-bit sums. */
AVX2 static inline __m256i add_product(__m256i sum, __m256i w, __m256i x, const int width) {
    return width == 8 ? _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x))
                      : _mm256_add_epi32(sum, _mm256_madd_epi16(w, x));
}

/* The sum of a group as a number; of 32 bits, that of the second half lies `apart`. */
AVX2 static inline __m256 joined(const __m256i *sum, const int apart, const int width) {
    if (width == 8) return _mm256_cvtepi32_ps(_mm256_madd_epi16(sum[0], _mm256_set1_epi16(1)));
    const __m256 whole = _mm256_cvtepi32_ps(sum[0]);
    if (width == 16) return whole;
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[apart]), _mm256_set1_ps(REST), whole);
}

/* Add a group's part in the results. The two parts of int4 nearly cancel out: for single precision,
 * they are added up before anything else. */
AVX2 static inline __m256 add_group(__m256 out, __m256 whole, __m256 scale, __m256 least,
                                    const float *factors, const int bits, const int width) {
    const __m256 sum = _mm256_broadcast_ss(factors + 1);
    scale = _mm256_mul_ps(scale, _mm256_broadcast_ss(factors));
    if (bits == 8) return _mm256_fmadd_ps(whole, scale, out);
    if (width < 32) return _mm256_fmadd_ps(whole, scale, _mm256_fmadd_ps(least, sum, out));
    return _mm256_add_ps(out, _mm256_fmadd_ps(whole, scale, _mm256_mul_ps(least, sum)));
}

/* All vectors of a tile times `blocks` (1 or 2) blocks: `out` is (count, blocks). `sums` has room for
 * (count, halves, blocks). What is const here but count is known when this is compiled. */
AVX2 __attribute__((always_inline)) static inline void strip(
    const Strip *s, const long count, __m256 *restrict out, __m256i *restrict sums, const int blocks,
    const int bits, const int width) {
    const int parts = width == 8 ? 2 : 4, halves = width == 32 ? 2 : 1, bytes = width == 8 ? 32 : 64;
    const int packed = bits == 4 ? NIBBLES : BYTES;
    const uint8_t *w[2] = {s->block[0], s->block[1]}, *x = s->x;
    const float *factors = s->factors;
    for (long at = 0; at < count * blocks; at++) out[at] = _mm256_setzero_ps();
    for (long g = 0; g < s->groups; g++) {
        __m256 scale[2], least[2];
        for (int b = 0; b < blocks; b++) {
            scale[b] = half8(w[b] + (bits == 4 ? 128 : 256));
            least[b] = bits == 4 ? half8(w[b] + 144) : scale[b];
            for (int line = 0; line < packed && count <= FEW; line += 64)
                _mm_prefetch((const char *)w[b] + AHEAD + line, _MM_HINT_T0);
        }
#pragma GCC unroll 4
        for (int part = 0; part < parts; part++) {
            __m256i u[2][4];
            for (int b = 0; b < blocks; b++) unpack(w[b], bits, width, part, u[b]);
            for (long t = 0; t < count; t++) {
                __m256i sum[4];
#pragma GCC unroll 2
                for (int half = 0; half < halves; half++) {
                    const uint8_t *at = x + (t * halves + half) * bytes + 16 * part;
                    __m256i *mine = sum + half * blocks, *kept = sums + (t * halves + half) * blocks;
                    for (int b = 0; b < blocks; b++) mine[b] = part ? kept[b] : _mm256_setzero_si256();
#pragma GCC unroll 4
                    for (int k = 0; k < 4; k++) {
                        const __m256i v = four(at + 4 * k);
                        for (int b = 0; b < blocks; b++)
                            mine[b] = add_product(mine[b], u[b][k], v, width);
                    }
                    if (part < parts - 1)
                        for (int b = 0; b < blocks; b++) kept[b] = mine[b];
                }
                if (part < parts - 1) continue;
                for (int b = 0; b < blocks; b++)
                    out[t * blocks + b] =
                        add_group(out[t * blocks + b], joined(sum + b, blocks, width), scale[b],
                                  least[b], factors + 2 * t, bits, width);
            }
        }
        x += count * halves * bytes, factors += 2 * count;
        w[0] += packed, w[1] += packed;
    }
}

/* A vector alone needs no room in memory for its sums. */
#define STRIP(name, bits, width)                                                                  \
    AVX2 __attribute__((noinline)) static void name(const Strip *s, __m256 *out) {                \
        __m256i sums[TILE * 2 * (width == 32 ? 2 : 1)], few[4];                                   \
        __m256 one[2];                                                                            \
        if (s->count > 1 && s->block[1]) strip(s, s->count, out, sums, 2, bits, width);           \
        else if (s->count > 1) strip(s, s->count, out, sums, 1, bits, width);                     \
        else if (s->block[1]) strip(s, 1, one, few, 2, bits, width), out[0] = one[0], out[1] = one[1]; \
        else strip(s, 1, one, few, 1, bits, width), out[0] = one[0];                              \
    }
STRIP(nibbles_by_8, 4, 8)
STRIP(nibbles_by_16, 4, 16)
STRIP(nibbles_by_32, 4, 32)
STRIP(bytes_by_16, 8, 16)
STRIP(bytes_by_32, 8, 32)

AVX2 static void times(const Product *p, const Strip *s, __m256 *out) {
    if (p->bits == 8) (p->width == 16 ? bytes_by_16 : bytes_by_32)(s, out);
    else (p->width == 8 ? nibbles_by_8 : p->width == 16 ? nibbles_by_16 : nibbles_by_32)(s, out);
}

/* e to the power of v: a power of two, and a polynomial between 2 ** -0.5 and 2 ** 0.5. */
AVX2 static inline __m256 power(__m256 v) {
    v = _mm256_max_ps(_mm256_set1_ps(-87.0f), _mm256_min_ps(_mm256_set1_ps(88.0f), v));
    const __m256 whole = _mm256_round_ps(_mm256_mul_ps(v, _mm256_set1_ps(1.44269504f)), 8);
    __m256 rest = _mm256_fnmadd_ps(whole, _mm256_set1_ps(0.693359375f), v);
    rest = _mm256_fnmadd_ps(whole, _mm256_set1_ps(-2.12194440e-4f), rest);
    __m256 sum = _mm256_set1_ps(1.0f / 5040);
    const float factors[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};
    for (int at = 0; at < 7; at++) sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(factors[at]));
    const __m256i shift = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(sum), shift));
}

AVX2 static inline __m256 silu(__m256 v) {
    const __m256 inverse = power(_mm256_xor_ps(v, _mm256_set1_ps(-0.0f)));
    return _mm256_div_ps(v, _mm256_add_ps(inverse, _mm256_set1_ps(1)));
}

/* Write the outputs of one tile and one pair of blocks. */
AVX2 static void finish(const Product *p, const __m256 *out, long first, long count, long block, int blocks) {
    const long width = p->blocks * BLOCK;
    for (long t = 0; t < count; t++, out += blocks) {
        float *y = p->y + (first + t) * width + block * BLOCK;
        if (p->then == GATE) {
            _mm256_storeu_ps(y, _mm256_mul_ps(silu(out[0]), out[1]));
            continue;
        }
        for (int b = 0; b < blocks; b++, y += BLOCK)
            _mm256_storeu_ps(y, p->then == ADD ? _mm256_add_ps(out[b], _mm256_loadu_ps(y)) : out[b]);
    }
}

AVX2 static void do_pair(const Product *p, long pair, long first, long count) {
    const long size = p->groups * (p->bits == 4 ? NIBBLES : BYTES);
    const long block = p->then == GATE ? pair : 2 * pair;
    const long other = p->then == GATE ? pair + p->blocks : block + 1;
    const int alone = p->then != GATE && other == p->blocks;
    const Strip s = {.block = {p->packed + block * size, alone ? NULL : p->packed + other * size},
                     .x = p->rounded + first * p->groups * group_bytes(p),
                     .factors = p->factors + first * p->groups * 2,
                     .groups = p->groups, .count = count};
    __m256 out[2 * TILE];
    times(p, &s, out);
    finish(p, out, first, count, block, alone ? 1 : 2);
}

static void do_piece(void *product, long piece) {
    const Product *p = product;
    piece = p->pieces - 1 - piece; /* the last is done first, but memory is read ahead */
    const long first = piece / p->runs * p->tile, start = piece % p->runs * p->run;
    const long end = start + p->run < p->pairs ? start + p->run : p->pairs;
    for (long pair = start; pair < end; pair++) do_pair(p, pair, first, tile_count(p, first));
}

/* Cut the work: vectors into equal tiles, blocks into pairs, pairs into runs. */
static void cut(Product *p, int threads) {
    const long tiles = (p->m + TILE - 1) / TILE;
    p->tile = (p->m + tiles - 1) / tiles;
    p->pairs = p->then == GATE ? p->blocks : (p->blocks + 1) / 2;
    p->run = p->m > FEW ? 1 : p->pairs / (RUNS * threads) > RUN ? p->pairs / (RUNS * threads) : RUN;
    p->runs = (p->pairs + p->run - 1) / p->run;
    p->pieces = (p->m + p->tile - 1) / p->tile * p->runs;
}

int multiply_all(Product *p, int threads) {
    const long places = p->m * p->groups;
    cut(p, threads);
    p->rounded = malloc((size_t)places * (size_t)group_bytes(p));
    p->factors = malloc((size_t)places * 2 * sizeof(float));
    const int done = p->rounded && p->factors;
    if (done) {
        share_out_to(p->team, round_piece, p, (p->m + ROUNDED - 1) / ROUNDED, threads);
        share_out_to(p->team, do_piece, p, p->pieces, threads);
    }
    free(p->rounded);
    free(p->factors);
    return done;
}
#endif
