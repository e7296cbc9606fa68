// The server's two passes over an update: one reads for the norms, one reads and writes for the merge, in two kinds. Also the
// memory triad, the limit that the passes are measured against.
//
// Vectors are contiguous float32 of one length n. Sums are taken in double, by blocks of fixed size whose partial sums are
// added in order to one sum for each chunk, so the result depends neither on the number of threads, nor on the instruction
// set, nor on how many processes hold a slice of the model each. Uses no MPI and no torch.

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace nb = nanobind;

// One binary for every x86-64 level: the loader picks the clone. A binary built with -march=native on a login node would
// crash with an illegal instruction on an older compute node.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && (!defined(__clang__) || __clang_major__ >= 15)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

namespace {

constexpr std::size_t block = 1 << 14;  // floats: three arrays of a block are 192 KiB, within a level-2 cache
constexpr std::size_t blocks_of_chunk = 16;  // a chunk is CHUNK of model/kernel.py

struct Sums {
    double moved = 0.0;   // sum (x - base)^2
    double change = 0.0;  // sum (w - base)^2
};

// Vector types of GCC and Clang; the compiler maps them to the instruction set of each clone. With plain loops over 16
// partial sums the same pass took three times as long: GCC 12 kept the sums in memory.
constexpr std::size_t width = 8;
typedef float Floats __attribute__((vector_size(width * sizeof(float))));
typedef double Doubles __attribute__((vector_size(width * sizeof(double))));

// The difference is rounded to float; its square is exact in double, so only the additions round.
#define SQUARED_DIFFERENCE(sum, a, b)                                        \
    {                                                                        \
        Floats left, right;                                                  \
        std::memcpy(&left, a, sizeof left);                                  \
        std::memcpy(&right, b, sizeof right);                                \
        const Doubles d = __builtin_convertvector(left - right, Doubles);    \
        sum += d * d;                                                        \
    }

// How far ahead cache lines are fetched, in floats. The processor's own prefetching ends at every page: alone it gave 11.6
// GB/s on three arrays in memory, and this gives 14.5.
constexpr std::size_t ahead = 512;

inline void fetch(const float *p) { __builtin_prefetch(p + ahead); }

// For a base, which is written next: this fetches the line for writing. A base that was just sent also lies in the
// receiver's cache: without this the merge of 10,000 elements waits 20 us for the lines, one after the other.
inline void fetch_to_write(const float *p) {
#if defined(__x86_64__)
    asm volatile("prefetchw %0" : : "m"(p[ahead]));
#else
    __builtin_prefetch(p + ahead, 1);
#endif
}

constexpr std::size_t piece = 2048;  // floats: the pieces of three arrays lie within a level-1 cache
constexpr std::size_t line = 16;     // floats of a cache line

// The same where the line is here already, but in the receiver's cache too (AMD): there only a store asks for it, and a small
// one to each line lets more of them be under way than the merge itself. Of 10,000 elements the merge took 8.0 us, and takes
// 4.1; of 262,144 it took 115 us, and takes 67.
inline void own(float *p, std::size_t n) {
    for (std::size_t i = 0; i < n; i += line) {
        volatile float *first = p + i;
        *first = *first;
    }
}

CLONES Sums sums_of_block(const float *x, const float *w, const float *base, std::size_t n) {
    Doubles moved = {}, moved2 = {}, change = {}, change2 = {};  // two of each, to hide the latency of an addition
    std::size_t i = 0;
    for (; i + 2 * width <= n; i += 2 * width) {
        fetch(x + i);
        fetch(w + i);
        fetch_to_write(base + i);
        SQUARED_DIFFERENCE(moved, x + i, base + i)
        SQUARED_DIFFERENCE(change, w + i, base + i)
        SQUARED_DIFFERENCE(moved2, x + i + width, base + i + width)
        SQUARED_DIFFERENCE(change2, w + i + width, base + i + width)
    }
    moved += moved2;
    change += change2;
    Sums total;
    for (std::size_t l = 0; l < width; ++l) {
        total.moved += moved[l];
        total.change += change[l];
    }
    for (; i < n; ++i) {
        const double d = x[i] - base[i];
        const double e = w[i] - base[i];
        total.moved += d * d;
        total.change += e * e;
    }
    return total;
}

// One of these sums alone, added in the same order, so that both functions give the same bits.
CLONES double sum_of_block(const float *a, const float *base, std::size_t n) {
    Doubles sum = {}, sum2 = {};
    std::size_t i = 0;
    for (; i + 2 * width <= n; i += 2 * width) {
        fetch(a + i);
        fetch(base + i);
        SQUARED_DIFFERENCE(sum, a + i, base + i)
        SQUARED_DIFFERENCE(sum2, a + i + width, base + i + width)
    }
    sum += sum2;
    double total = 0.0;
    for (std::size_t l = 0; l < width; ++l) total += sum[l];
    for (; i < n; ++i) {
        const double d = a[i] - base[i];
        total += d * d;
    }
    return total;
}

CLONES void apply_to_piece(float *__restrict x, const float *__restrict w, float *__restrict base, std::size_t n, float eta) {
    for (std::size_t i = 0; i < n; ++i) {
        const float merged = x[i] + eta * (w[i] - base[i]);
        x[i] = merged;
        base[i] = merged;
    }
}

// One element after the other: each operation is rounded, as in the twin. Comparisons and not std::min, so that the compiler
// makes them instructions of vectors.
CLONES void reach_to_piece(float *__restrict x, const float *__restrict w, float *__restrict base, float *__restrict v,
                           std::size_t n, float alpha, float mu, float follow, float ahead) {
    for (std::size_t i = 0; i < n; ++i) {
        const float change = w[i] - base[i];
        const float low = change < 0.0f ? change : 0.0f;
        const float high = change > 0.0f ? change : 0.0f;
        float step = w[i] + ahead * v[i] - x[i];
        step = step < low ? low : step;
        step = step > high ? high : step;
        const float move = alpha * step + mu * v[i];
        const float merged = x[i] + move;
        v[i] = v[i] + follow * (move - v[i]);
        x[i] = merged;
        base[i] = merged;
    }
}

CLONES void triad_of_block(float *__restrict a, const float *__restrict b, const float *__restrict c, std::size_t n, float s) {
    for (std::size_t i = 0; i < n; ++i) a[i] = b[i] + s * c[i];
}

// Vectors come as the addresses of their first elements, and their one length n: to take three arrays of numpy, after torch
// has made them, takes 3 us. model/kernel.py has checked what lies there.
using Address = std::uintptr_t;

inline float *at(Address vector, std::size_t element) { return reinterpret_cast<float *>(vector) + element; }

// The length of the part [start, stop) of vectors.
std::size_t part(std::size_t n, std::size_t start, std::size_t stop) {
    if (start > stop || stop > n) throw nb::value_error("start and stop must lie within the vectors, in order");
    return stop - start;
}

template <class Work>
void for_each_block(std::size_t n, int threads, const Work &work) {
    const auto blocks = static_cast<std::int64_t>((n + block - 1) / block);
    (void) threads;  // unused where the compiler has no OpenMP
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && blocks > 1)
    for (std::int64_t b = 0; b < blocks; ++b) {
        const std::size_t first = static_cast<std::size_t>(b) * block;
        work(static_cast<std::size_t>(b), first, std::min(block, n - first));
    }
}

// For the passes that write a base.
template <class Work>
void for_each_piece(std::size_t n, int threads, float *base, const Work &work) {
    for_each_block(n, threads, [&](std::size_t, std::size_t first, std::size_t count) {
        for (const std::size_t end = first + count; first < end; first += piece) {
            const std::size_t some = std::min(piece, end - first);
            own(base + first, some);
            work(first, some);
        }
    });
}

std::vector<std::pair<double, double>> sums(std::size_t stop, int threads, Address x, Address w, Address base,
                                            std::size_t length) {
    const std::size_t n = part(length, 0, stop);
    const float *px = at(x, 0), *pw = at(w, 0), *pb = at(base, 0);
    nb::gil_scoped_release release;
    std::vector<Sums> partial((n + block - 1) / block);
    for_each_block(n, threads, [&](std::size_t b, std::size_t first, std::size_t count) {
        partial[b] = sums_of_block(px + first, pw + first, pb + first, count);
    });
    std::vector<std::pair<double, double>> chunks((partial.size() + blocks_of_chunk - 1) / blocks_of_chunk);
    for (std::size_t b = 0; b < partial.size(); ++b) {
        chunks[b / blocks_of_chunk].first += partial[b].moved;
        chunks[b / blocks_of_chunk].second += partial[b].change;
    }
    return chunks;
}

std::vector<double> squared_distances(std::size_t start, std::size_t stop, int threads, Address a, Address base,
                                      std::size_t length) {
    const std::size_t n = part(length, start, stop);
    const float *pa = at(a, start), *pb = at(base, start);
    nb::gil_scoped_release release;
    std::vector<double> partial((n + block - 1) / block);
    for_each_block(n, threads, [&](std::size_t b, std::size_t first, std::size_t count) {
        partial[b] = sum_of_block(pa + first, pb + first, count);
    });
    std::vector<double> chunks((partial.size() + blocks_of_chunk - 1) / blocks_of_chunk);
    for (std::size_t b = 0; b < partial.size(); ++b) chunks[b / blocks_of_chunk] += partial[b];
    return chunks;
}

void apply(float eta, std::size_t start, std::size_t stop, int threads, Address x, Address w, Address base, std::size_t length) {
    const std::size_t n = part(length, start, stop);
    float *px = at(x, start), *pb = at(base, start);
    const float *pw = at(w, start);
    nb::gil_scoped_release release;
    for_each_piece(n, threads, pb, [&](std::size_t first, std::size_t count) {
        apply_to_piece(px + first, pw + first, pb + first, count, eta);
    });
}

void reach(float alpha, float mu, float follow, float ahead, std::size_t start, std::size_t stop, int threads, Address v,
           Address x, Address w, Address base, std::size_t length) {
    const std::size_t n = part(length, start, stop);
    float *px = at(x, start), *pb = at(base, start), *pv = at(v, start);
    const float *pw = at(w, start);
    nb::gil_scoped_release release;
    for_each_piece(n, threads, pb, [&](std::size_t first, std::size_t count) {
        reach_to_piece(px + first, pw + first, pb + first, pv + first, count, alpha, mu, follow, ahead);
    });
}

void triad(float s, int threads, Address a, Address b, Address c, std::size_t n) {
    float *pa = at(a, 0);
    const float *pb = at(b, 0), *pc = at(c, 0);
    nb::gil_scoped_release release;
    for_each_block(n, threads, [&](std::size_t, std::size_t first, std::size_t count) {
        triad_of_block(pa + first, pb + first, pc + first, count, s);
    });
}

}  // namespace

void add_bells(nb::module_ &m);  // bells.cpp

NB_MODULE(_kernel, m) {
    using namespace nb::literals;
    add_bells(m);
    m.def("sums", &sums, "stop"_a, "threads"_a, "x"_a, "w"_a, "base"_a, "n"_a,
          "sum (x - base)^2 and sum (w - base)^2 of each chunk of [0, stop), in one pass, in float64.");
    m.def("squared_distances", &squared_distances, "start"_a, "stop"_a, "threads"_a, "a"_a, "base"_a, "n"_a,
          "sum (a - base)^2 of each chunk of [start, stop), in float64.");
    m.def("apply", &apply, "eta"_a, "start"_a, "stop"_a, "threads"_a, "x"_a, "w"_a, "base"_a, "n"_a,
          "x += eta (w - base); base = x over [start, stop), in one pass. The vectors must not overlap.");
    m.def("reach", &reach, "alpha"_a, "mu"_a, "follow"_a, "ahead"_a, "start"_a, "stop"_a, "threads"_a, "v"_a, "x"_a, "w"_a,
          "base"_a, "n"_a,
          "move = alpha s + mu v, where s is w + ahead v - x bounded by 0 and w - base; v += follow (move - v); x += move; base = x over "
          "[start, stop), in one pass. The vectors must not overlap.");
    m.def("triad", &triad, "s"_a, "threads"_a, "a"_a, "b"_a, "c"_a, "n"_a,
          "a = b + s c, in one pass. The vectors must not overlap.");
}
