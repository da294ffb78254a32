// Attention of decoded tokens over latents in blocks, one pass over the cache. What it computes is
// `plain` of attention.py; how it is built and called is cpu_kernels.py's matter.
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
constexpr int64_t ROWS = 8, HEADS = 2;
// So many rows between two looks at the softmax's largest: they stay in the first caches.
constexpr int64_t TILE = 16;

// What a register holds. Written out, because compilers choose worse ways through the loops below.
#ifdef __AVX512F__
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
#endif
typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));

static Vector load(const float* from) {
    Vector result;
    std::memcpy(&result, from, sizeof result);
    return result;
}

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

// Rows as float32: where they lie, or else copied. Where their number is no multiple of ROWS the
// copy ends in rows from before.
static const float* readable(const float* rows, int64_t count, int64_t width, float* copy) {
    return count % ROWS ? std::copy_n(rows, count * width, copy), copy : rows;
}

static const float* readable(const bfloat16* rows, int64_t count, int64_t width, float* copy) {
    for (int64_t i = 0; i < count * width; ++i) copy[i] = value(rows[i]);
    return copy;
}

// weights[head][i] = query[head] · row[i]; a head's weights lie TILE apart from the next one's.
// `ahead`: the rows that are wanted a tile later, which memory is told to send. It is told again for
// each pair of heads; what it has no room for is forgotten.
template <typename T>
static void dots(const float* query, const float* rows, int64_t width, float* weights,
                 const T* ahead) {
    constexpr int READ = 0, SECOND_CACHE = 2;
    Vector sums[HEADS][ROWS] = {};
    int64_t j = 0;
    for (; j + LANES <= width; j += LANES) {
        Vector row[ROWS];
        for (int64_t i = 0; i < ROWS; ++i) row[i] = load(rows + i * width + j);
        for (int64_t i = 0; i < ROWS; ++i)
            __builtin_prefetch(ahead + i * width + j, READ, SECOND_CACHE);
        for (int64_t head = 0; head < HEADS; ++head)
            for (int64_t i = 0; i < ROWS; ++i)
                sums[head][i] += load(query + head * width + j) * row[i];
    }
    for (int64_t head = 0; head < HEADS; ++head)
        for (int64_t i = 0; i < ROWS; ++i) {
            float sum = 0;
            for (int64_t lane = 0; lane < LANES; ++lane) sum += sums[head][i][lane];
            for (int64_t k = j; k < width; ++k) sum += query[head * width + k] * rows[i * width + k];
            weights[head * TILE + i] = sum;
        }
}

// output[head] += weights[head][i] · row[i], summed over the rows.
static void accumulate(const float* weights, const float* rows, int64_t width, int64_t kept,
                       float* output) {
    int64_t j = 0;
    for (; j + LANES <= kept; j += LANES) {
        Vector row[ROWS];
        for (int64_t i = 0; i < ROWS; ++i) row[i] = load(rows + i * width + j);
        for (int64_t head = 0; head < HEADS; ++head) {
            Vector sum = load(output + head * kept + j);
            for (int64_t i = 0; i < ROWS; ++i) sum += weights[head * TILE + i] * row[i];
            std::memcpy(output + head * kept + j, &sum, sizeof sum);
        }
    }
    for (; j < kept; ++j)
        for (int64_t head = 0; head < HEADS; ++head)
            for (int64_t i = 0; i < ROWS; ++i)
                output[head * kept + j] += weights[head * TILE + i] * rows[i * width + j];
}

// Dot products into shares of the softmax so far, whose sum and output are kept for its largest.
static void weigh(float* weights, int64_t count, float scale, float& largest, float& sum,
                  float* output, int64_t kept) {
    float high = largest;
    for (int64_t i = 0; i < count; ++i) high = std::max(high, scale * weights[i]);
    if (high > largest) {
        const float fade = std::exp(largest - high);
        sum *= fade;
        for (int64_t j = 0; j < kept; ++j) output[j] *= fade;
        largest = high;
    }
    for (int64_t i = 0; i < count; ++i) {
        weights[i] = std::exp(scale * weights[i] - high);
        sum += weights[i];
    }
    std::fill(weights + count, weights + TILE, 0.0f);
}

// One sequence of `length` tokens: query and output are [heads, width] and [heads, kept].
template <typename T>
static void sequence(const float* query, const T* cache, const int64_t* table, int64_t length,
                     float* output, int64_t heads, int64_t width, int64_t kept, int64_t places,
                     float scale) {
    std::vector<float> copy(TILE * width, 0), weights(heads * TILE), sums(heads, 0);
    std::vector<float> largest(heads, -std::numeric_limits<float>::infinity());
    std::fill_n(output, heads * kept, 0.0f);
    for (int64_t first = 0, count; first < length; first += count) {
        const int64_t place = first % places;
        count = std::min({TILE, places - place, length - first});
        const T* row = cache + (table[first / places] * places + place) * width;
        const int64_t next = std::min(first + count, length - 1);
        const T* ahead = cache + (table[next / places] * places + next % places) * width;
        const float* rows = readable(row, count, width, copy.data());
        for (int64_t i = 0; i < count; i += ROWS)
            for (int64_t head = 0; head < heads; head += HEADS)
                dots(query + head * width, rows + i * width, width, &weights[head * TILE + i],
                     ahead + i * width);
        for (int64_t head = 0; head < heads; ++head)
            weigh(&weights[head * TILE], count, scale, largest[head], sums[head],
                  output + head * kept, kept);
        for (int64_t i = 0; i < count; i += ROWS)
            for (int64_t head = 0; head < heads; head += HEADS)
                accumulate(&weights[head * TILE + i], rows + i * width, width, kept,
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
