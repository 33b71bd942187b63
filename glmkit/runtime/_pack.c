/* Lay matrices out for the kernels, and write them back as ordinary numbers; see _kernels.c. */
#include "_kernels.h"

#ifdef HAVE_KERNELS
#include <string.h>

/* Pack one group of 8 rows, which lie `row_bytes` apart. On disk, byte b of an int4 group holds column
 * b in its low half and column b + 16 in its high half. */
static void pack_nibbles(const uint8_t *rows, long row_bytes, uint8_t *out) {
    memset(out, 0, 128);
    for (int row = 0; row < BLOCK; row++)
        for (int k = 0; k < GROUP; k++) {
            const uint8_t both = rows[row * row_bytes + k % 16], value = k < 16 ? both & 15 : both >> 4;
            out[k / 8 * 32 + 4 * row + k % 4] |= (uint8_t)(k % 8 < 4 ? value : value << 4);
        }
}

static void pack_bytes(const uint8_t *rows, long row_bytes, uint8_t *out) {
    for (int row = 0; row < BLOCK; row++)
        for (int k = 0; k < GROUP; k++) out[k / 2 * 16 + 2 * row + k % 2] = rows[row * row_bytes + k];
}

void pack_all(const uint8_t *weight, const uint16_t *scale, const uint16_t *least, long n, long groups,
              uint8_t *out) {
    const long bytes = least ? GROUP / 2 : GROUP, head = least ? 128 : 256;
    for (long block = 0; block < n / BLOCK; block++)
        for (long g = 0; g < groups; g++, out += least ? NIBBLES : BYTES) {
            const long first = block * BLOCK * groups + g;
            (least ? pack_nibbles : pack_bytes)(weight + first * bytes, groups * bytes, out);
            for (int row = 0; row < BLOCK; row++) {
                memcpy(out + head + 2 * row, scale + first + row * groups, 2);
                if (least) memcpy(out + head + 16 + 2 * row, least + first + row * groups, 2);
            }
        }
}

/* Of 8 numbers, number 2 * pair in the first four lanes and its neighbour in the others. */
AVX2 static inline __m256 two_of(__m256 v, int pair) {
    const __m256i first = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    return _mm256_permutevar8x32_ps(v, _mm256_add_epi32(first, _mm256_set1_epi32(2 * pair)));
}

/* Write four columns of two rows, which lie k apart. */
AVX2 static inline void four_columns(float *out, long k, __m256 v) {
    _mm_storeu_ps(out, _mm256_castps256_ps128(v));
    _mm_storeu_ps(out + k, _mm256_extractf128_ps(v, 1));
}

AVX2 static void expand_nibbles(const uint8_t *w, float *out, long k) {
    const __m128i low = _mm_set1_epi8(15);
    for (int pair = 0; pair < 4; pair++, out += 2 * k) {
        const __m256 scale = two_of(half8(w + 128), pair), least = two_of(half8(w + 144), pair);
        for (int at = 0; at < GROUP; at += 8) {
            const __m128i both = _mm_loadl_epi64((const __m128i *)(w + at * 4 + 8 * pair));
            const __m128i high = _mm_and_si128(_mm_srli_epi16(both, 4), low);
            const __m256 a = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_and_si128(both, low)));
            const __m256 b = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(high));
            four_columns(out + at, k, _mm256_fmadd_ps(a, scale, least));
            four_columns(out + at + 4, k, _mm256_fmadd_ps(b, scale, least));
        }
    }
}

AVX2 static void expand_bytes(const uint8_t *w, float *out, long k) {
    const __m256i low = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    const __m256 all = half8(w + 256);
    for (int half = 0; half < 2; half++, out += 4 * k) {
        const __m256 scale = _mm256_permutevar8x32_ps(
            all, _mm256_add_epi32(low, _mm256_set1_epi32(4 * half)));
        for (int at = 0; at < GROUP; at += 2) {
            const __m128i both = _mm_loadl_epi64((const __m128i *)(w + at * 8 + 8 * half));
            float rows[8];
            _mm256_storeu_ps(rows, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(both)), scale));
            for (int row = 0; row < 4; row++) memcpy(out + row * k + at, rows + 2 * row, 8);
        }
    }
}

void expand_all(const uint8_t *packed, int bits, long n, long k, float *out) {
    for (long row = 0; row < n; row += BLOCK)
        for (long at = 0; at < k; at += GROUP, packed += bits == 4 ? NIBBLES : BYTES)
            (bits == 4 ? expand_nibbles : expand_bytes)(packed, out + row * k + at, k);
}
#endif
