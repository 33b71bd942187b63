/* Norm vectors and round them, group by group, to the whole numbers that the matrix kernels multiply.
 *
 * 8 bits are -127 to 127, 16 bits -32767 to 32767, and 32 bits are two numbers of 16: what the first
 * leaves is rounded again, to 65534ths of a step. Groups lie in the order in which a tile reads them:
 * group 0 of all its vectors, then group 1; the second half of a group behind its first. Beside int4,
 * 16 bits lie in the order in which nibbles come out of 16-bit lanes: of each 8 columns 0, 2, 1, 3, then
 * 4, 6, 5, 7.
 */
#include "_kernels.h"

#ifdef HAVE_KERNELS
#include <math.h>

typedef struct {
    __m256 part[GROUP / 8];
} Group;

AVX2 static inline float total(__m256 v) {
    __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}

AVX2 static inline int32_t total_whole(__m256i v) {
    __m128i a = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    a = _mm_add_epi32(a, _mm_shuffle_epi32(a, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(a, _mm_shuffle_epi32(a, 0xB1)));
}

AVX2 static inline float largest(__m256 v) {
    __m128 a = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)));
}

AVX2 static inline void store8(uint8_t *out, const __m256i *q) {
    const __m256i a = _mm256_packs_epi32(q[0], q[1]), b = _mm256_packs_epi32(q[2], q[3]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i all = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order);
    _mm256_storeu_si256((__m256i *)out, all);
}

AVX2 static inline void store16(uint8_t *out, const __m256i *q, int bits) {
    __m256i a = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[0], q[1]), 0xD8);
    __m256i b = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[2], q[3]), 0xD8);
    if (bits == 4) {
        a = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(a, 0xD8), 0xD8);
        b = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(b, 0xD8), 0xD8);
    }
    _mm256_storeu_si256((__m256i *)out, a);
    _mm256_storeu_si256((__m256i *)(out + 32), b);
}

/* Store what rounding v * inverse to q leaves, in units of REST; return the sum of that. */
AVX2 static inline __m256i store_rest(uint8_t *out, const Group *v, __m256 inverse, const __m256i *q,
                                      int bits) {
    __m256i rest[4], sum = _mm256_setzero_si256();
    for (int at = 0; at < 4; at++) {
        const __m256 left = _mm256_fmsub_ps(v->part[at], inverse, _mm256_cvtepi32_ps(q[at]));
        rest[at] = _mm256_cvtps_epi32(_mm256_mul_ps(left, _mm256_set1_ps(1.0f / REST)));
        sum = _mm256_add_epi32(sum, rest[at]);
    }
    store16(out, rest, bits);
    return sum;
}

/* Numbers below this are taken for zero: the inverse of their step may be infinite. */
#define LEAST 1e-30f

/* Round one group; NaN and infinity poison its step and sum, and so the whole vector's results. */
AVX2 static inline void round_group(const Group *v, uint8_t *out, float *factors, int bits, int width) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 most = _mm256_setzero_ps(), poison = most;
    for (int at = 0; at < 4; at++) {
        most = _mm256_max_ps(most, _mm256_andnot_ps(sign, v->part[at]));
        poison = _mm256_fmadd_ps(v->part[at], _mm256_setzero_ps(), poison);
    }
    const float size = largest(most), steps = width == 8 ? 127.0f : 32767.0f;
    const int finite = total(poison) == 0;
    const __m256 inverse = _mm256_set1_ps(finite && size > LEAST ? steps / size : 0.0f);
    __m256i q[4], sum = _mm256_setzero_si256();
    for (int at = 0; at < 4; at++) {
        q[at] = _mm256_cvtps_epi32(_mm256_mul_ps(v->part[at], inverse));
        sum = _mm256_add_epi32(sum, q[at]);
    }
    float whole = (float)total_whole(sum);
    if (width == 8) store8(out, q);
    else store16(out, q, bits);
    if (width == 32) whole += REST * (float)total_whole(store_rest(out + 64, v, inverse, q, bits));
    factors[0] = finite ? size / steps : NAN;
    factors[1] = finite ? whole * factors[0] : NAN;
}

/* What brings a vector to unit mean square. */
AVX2 static float norm_scale(const float *x, long k, float eps) {
    __m256 square = _mm256_setzero_ps();
    for (long at = 0; at < k; at += 8) {
        const __m256 v = _mm256_loadu_ps(x + at);
        square = _mm256_fmadd_ps(v, v, square);
    }
    return 1.0f / sqrtf(total(square) / (float)k + eps);
}

AVX2 static inline void round_vector(const Product *p, long m, int bits, int width) {
    const long first = m / p->tile * p->tile, count = tile_count(p, first), bytes = group_bytes(p);
    uint8_t *out = p->rounded + (first * p->groups + m - first) * bytes;
    float *factors = p->factors + (first * p->groups + m - first) * 2;
    const float *x = p->x + m * p->groups * GROUP, *norm = p->norm;
    const __m256 scale = _mm256_set1_ps(norm ? norm_scale(x, p->groups * GROUP, p->eps) : 1.0f);
    for (long g = 0; g < p->groups; g++, x += GROUP, out += count * bytes, factors += count * 2) {
        Group v;
        for (int at = 0; at < 4; at++) {
            v.part[at] = _mm256_loadu_ps(x + 8 * at);
            if (!norm) continue;
            const __m256 weight = _mm256_loadu_ps(norm + g * GROUP + 8 * at);
            v.part[at] = _mm256_mul_ps(_mm256_mul_ps(v.part[at], scale), weight);
        }
        round_group(&v, out, factors, bits, width);
    }
}

AVX2 void round_piece(void *product, long piece) {
    const Product *p = product;
    const long end = (piece + 1) * ROUNDED < p->m ? (piece + 1) * ROUNDED : p->m;
    for (long m = piece * ROUNDED; m < end; m++) {
        if (p->width == 8) round_vector(p, m, 4, 8);
        else if (p->width == 16) round_vector(p, m, p->bits, 16);
        else round_vector(p, m, p->bits, 32);
    }
}
#endif
