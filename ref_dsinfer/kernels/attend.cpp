// Attention of decoded tokens over latents in blocks, one pass over the cache. What it computes is
// `plain` of attention.py; how it is built and called is native.py's matter.
//
// A sequence's keys are its cached rows, of `width` values; its values are the first `kept` of each.
// Softmax is carried from block to block.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

using std::int64_t;

// So many rows and heads at a time: what is loaded for one serves the others.
constexpr int64_t ROWS = 4, HEADS = 2;

struct bfloat16 {
    std::uint16_t bits;
};

static float value(float x) { return x; }

static float value(bfloat16 x) {
    const std::uint32_t bits = std::uint32_t(x.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

// weights[head][i] = query[head] · row[i]; a head's weights lie `stride` apart from the next one's.
static void dots(const float* query, const float* rows, int64_t width, float* weights,
                 int64_t stride) {
    float sums[HEADS][ROWS] = {};
    for (int64_t j = 0; j < width; ++j)
        for (int64_t head = 0; head < HEADS; ++head)
            for (int64_t i = 0; i < ROWS; ++i)
                sums[head][i] += query[head * width + j] * rows[i * width + j];
    for (int64_t head = 0; head < HEADS; ++head)
        std::copy_n(sums[head], ROWS, weights + head * stride);
}

// output[head] += weights[head][i] · row[i], summed over the rows.
static void accumulate(const float* weights, int64_t stride, const float* rows, int64_t width,
                       int64_t kept, float* output) {
    for (int64_t head = 0; head < HEADS; ++head)
        for (int64_t j = 0; j < kept; ++j) {
            float sum = output[head * kept + j];
            for (int64_t i = 0; i < ROWS; ++i) sum += weights[head * stride + i] * rows[i * width + j];
            output[head * kept + j] = sum;
        }
}

// One sequence of `length` tokens: query and output are [heads, width] and [heads, kept].
template <typename T>
static void sequence(const float* query, const T* cache, const int64_t* table, int64_t length,
                     float* output, int64_t heads, int64_t width, int64_t kept, int64_t places,
                     float scale) {
    const int64_t stride = places + ROWS;  // what lies behind the last row gets a weight of 0
    std::vector<float> rows(stride * width, 0), weights(heads * stride), sums(heads, 0);
    std::vector<float> largest(heads, -std::numeric_limits<float>::infinity());
    std::fill_n(output, heads * kept, 0.0f);
    for (int64_t first = 0; first < length; first += places) {
        const int64_t count = std::min(places, length - first);
        const T* block = cache + table[first / places] * places * width;
        for (int64_t i = 0; i < count * width; ++i) rows[i] = value(block[i]);
        for (int64_t i = 0; i < count; i += ROWS)
            for (int64_t head = 0; head < heads; head += HEADS)
                dots(query + head * width, &rows[i * width], width, &weights[head * stride + i],
                     stride);
        for (int64_t head = 0; head < heads; ++head) {
            float* weight = &weights[head * stride];
            float high = largest[head];
            for (int64_t i = 0; i < count; ++i) high = std::max(high, scale * weight[i]);
            const float fade = std::exp(largest[head] - high);
            largest[head] = high;
            sums[head] *= fade;
            for (int64_t j = 0; j < kept; ++j) output[head * kept + j] *= fade;
            for (int64_t i = 0; i < count; ++i) {
                weight[i] = std::exp(scale * weight[i] - high);
                sums[head] += weight[i];
            }
            std::fill_n(weight + count, ROWS, 0.0f);
        }
        for (int64_t i = 0; i < count; i += ROWS)
            for (int64_t head = 0; head < heads; head += HEADS)
                accumulate(&weights[head * stride + i], stride, &rows[i * width], width, kept,
                           output + head * kept);
    }
    for (int64_t head = 0; head < heads; ++head)
        for (int64_t j = 0; j < kept; ++j) output[head * kept + j] /= sums[head];
}

// query [count, heads, width], table [count, columns], output [count, heads, kept]; `heads` must be
// a multiple of HEADS.
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
