// Attention of decoded tokens over latents in blocks, one pass over the cache. What it computes is
// `plain` of attention.py; how it is built and called is native.py's matter.
//
// A sequence's keys are its cached rows, of `width` values; its values are the first `kept` of each.
// Rows are read once for all heads, and softmax is carried from block to block.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

struct bfloat16 {
    uint16_t bits;
};

static float value(float x) { return x; }

static float value(bfloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

// Four rows at a time: what is loaded for one serves the others.
constexpr int64_t ROWS = 4;

// out[i] = query · row i, of ROWS rows.
static void dots(const float* query, const float* rows, int64_t width, float* out) {
    float a = 0, b = 0, c = 0, d = 0;
    for (int64_t j = 0; j < width; ++j) {
        a += query[j] * rows[j];
        b += query[j] * rows[width + j];
        c += query[j] * rows[2 * width + j];
        d += query[j] * rows[3 * width + j];
    }
    out[0] = a, out[1] = b, out[2] = c, out[3] = d;
}

// out += weight · row, summed over ROWS rows.
static void accumulate(const float* weights, const float* rows, int64_t width, int64_t kept,
                       float* out) {
    for (int64_t j = 0; j < kept; ++j)
        out[j] += weights[0] * rows[j] + weights[1] * rows[width + j] +
                  weights[2] * rows[2 * width + j] + weights[3] * rows[3 * width + j];
}

// One sequence of `length` tokens: query and output are [heads, width] and [heads, kept].
template <typename T>
static void sequence(const float* query, const T* cache, const int64_t* table, int64_t length,
                     float* output, int64_t heads, int64_t width, int64_t kept, int64_t places,
                     float scale) {
    // Zeros behind the last row: their weights become 0.
    std::vector<float> rows((places + ROWS) * width, 0), weights(places + ROWS), sums(heads, 0);
    std::vector<float> largest(heads, -std::numeric_limits<float>::infinity());
    std::fill_n(output, heads * kept, 0.0f);
    for (int64_t first = 0; first < length; first += places) {
        const int64_t count = std::min(places, length - first);
        const T* block = cache + table[first / places] * places * width;
        for (int64_t i = 0; i < count * width; ++i) rows[i] = value(block[i]);
        for (int64_t head = 0; head < heads; ++head) {
            float* out = output + head * kept;
            for (int64_t i = 0; i < count; i += ROWS)
                dots(query + head * width, &rows[i * width], width, &weights[i]);
            float high = largest[head];
            for (int64_t i = 0; i < count; ++i) high = std::max(high, scale * weights[i]);
            const float fade = std::exp(largest[head] - high);
            largest[head] = high;
            sums[head] *= fade;
            for (int64_t j = 0; j < kept; ++j) out[j] *= fade;
            for (int64_t i = 0; i < count; ++i) {
                weights[i] = std::exp(scale * weights[i] - high);
                sums[head] += weights[i];
            }
            std::fill_n(&weights[count], ROWS, 0.0f);
            for (int64_t i = 0; i < count; i += ROWS)
                accumulate(&weights[i], &rows[i * width], width, kept, out);
        }
    }
    for (int64_t head = 0; head < heads; ++head)
        for (int64_t j = 0; j < kept; ++j) output[head * kept + j] /= sums[head];
}

template <typename T>
static void attend(const float* query, const T* cache, const int64_t* table,
                   const int64_t* lengths, float* output, int64_t count, int64_t heads,
                   int64_t width, int64_t kept, int64_t columns, int64_t places, float scale) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t n = 0; n < count; ++n)
        sequence(query + n * heads * width, cache, table + n * columns, lengths[n],
                 output + n * heads * kept, heads, width, kept, places, scale);
}

extern "C" void attend_float32(const float* query, const float* cache, const int64_t* table,
                               const int64_t* lengths, float* output, int64_t count,
                               int64_t heads, int64_t width, int64_t kept, int64_t columns,
                               int64_t places, float scale) {
    attend(query, cache, table, lengths, output, count, heads, width, kept, columns, places, scale);
}

extern "C" void attend_bfloat16(const float* query, const bfloat16* cache, const int64_t* table,
                                const int64_t* lengths, float* output, int64_t count,
                                int64_t heads, int64_t width, int64_t kept, int64_t columns,
                                int64_t places, float scale) {
    attend(query, cache, table, lengths, output, count, heads, width, kept, columns, places, scale);
}
