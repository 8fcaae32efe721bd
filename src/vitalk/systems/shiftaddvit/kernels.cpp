// Matrix products without multiplications: MatShift and MatAdd of ShiftAddViT (arXiv 2306.06446) on integers.
// Vectors are GCC's and Clang's own, so one source serves every width; kernels.py compiles, loads and explains it.

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

constexpr long BLOCK = 16;  // outputs whose weights lie together

template <typename T>
struct Lanes {
    static constexpr int n = 64 / sizeof(T);
    typedef T vec __attribute__((vector_size(64)));
    typedef uint8_t bytes __attribute__((vector_size(64 / sizeof(T))));
};

// y[rows, columns] = sum over inner of sign * (x >> shift), or with exact sign * (x << (base - shift)).
// A weight is one byte: shift in the low five bits, 64 for "not zero", 128 for the minus sign.
template <typename T, bool exact>
void shift(const int32_t* x, const uint8_t* weights, int64_t* y, long rows, long inner, long columns, int base) {
    using V = typename Lanes<T>::vec;
    constexpr int L = Lanes<T>::n, R = 8;
    for (long column = 0; column < columns; column += L) {
        const uint8_t* block = weights + column / BLOCK * inner * BLOCK + column % BLOCK;
        for (long first = 0; first < rows; first += R) {
            const int32_t* from[R];
            V sum[R] = {}, negative = {};
            for (int r = 0; r < R; r++) from[r] = x + std::min(first + r, rows - 1) * inner;
            for (long k = 0; k < inner; k++) {
                typename Lanes<T>::bytes code;
                std::memcpy(&code, block + k * BLOCK, sizeof code);
                const V wide = __builtin_convertvector(code, V);
                const V flip = -(wide >> 7), keep = -((wide >> 6) & 1);
                const V by = exact ? base - (wide & 31) : wide & 31;
                for (int r = 0; r < R; r++) {
                    const V value = V{} + (T)from[r][k];
                    sum[r] += ((exact ? value << by : value >> by) & keep) ^ flip;  // ~t = -t - 1
                }
                negative -= flip;  // makes good for the -1
            }
            const long width = std::min<long>(L, columns - column);
            for (int r = 0; r < R && first + r < rows; r++) {
                const V total = sum[r] + negative;
                for (long c = 0; c < width; c++) y[(first + r) * columns + column + c] = total[c];
            }
        }
    }
}

// y[rows, columns] = sum of those rows of values[inner, columns] whose bit is set in codes[rows, words].
// Sums of four rows each stand in tables that fit the first cache, so a row of codes costs a quarter of its bits.
template <typename In, typename T>
void add(const uint64_t* codes, const In* values, int64_t* y, long rows, long inner, long columns) {
    using V = typename Lanes<T>::vec;
    constexpr int L = Lanes<T>::n, C = 2;
    const long words = (inner + 63) / 64;
    static thread_local V table[16][16][C];
    std::fill(y, y + rows * columns, 0);
    for (long column = 0; column < columns; column += C * L) {
        const long width = std::min<long>(C * L, columns - column);
        for (long word = 0; word < words; word++) {
            const int groups = (std::min<long>(64, inner - word * 64) + 3) / 4;
            for (int g = 0; g < groups; g++) {
                T four[4][C * L] = {};
                for (int i = 0; i < 4; i++) {
                    const long row = word * 64 + g * 4 + i;
                    if (row < inner) std::copy_n(values + row * columns + column, width, four[i]);
                }
                V part[4][C];
                std::memcpy(part, four, sizeof part);
                for (int c = 0; c < C; c++) {
                    table[g][0][c] = V{};
                    for (int e = 1; e < 16; e++) {
                        table[g][e][c] = table[g][e & (e - 1)][c] + part[__builtin_ctz(e)][c];
                    }
                }
            }
            for (long r = 0; r < rows; r++) {
                uint64_t code = codes[r * words + word];
                V sum[C] = {};
                for (int g = 0; g < groups; g++, code >>= 4) {
                    for (int c = 0; c < C; c++) sum[c] += table[g][code & 15][c];
                }
                int64_t* out = y + r * columns + column;
                for (int c = 0; c < C; c++) {
                    const long some = std::min<long>(L, width - c * L);
                    if (some == L) {
                        for (int i = 0; i < L; i++) out[c * L + i] += sum[c][i];
                    } else {
                        for (long i = 0; i < some; i++) out[c * L + i] += sum[c][i];
                    }
                }
            }
        }
    }
}

}  // namespace

extern "C" {

void shift_narrow(const int32_t* x, const uint8_t* w, int64_t* y, long rows, long inner, long columns, int base) {
    shift<int32_t, false>(x, w, y, rows, inner, columns, base);
}

void shift_wide(const int32_t* x, const uint8_t* w, int64_t* y, long rows, long inner, long columns, int base) {
    shift<int64_t, false>(x, w, y, rows, inner, columns, base);
}

void shift_exact(const int32_t* x, const uint8_t* w, int64_t* y, long rows, long inner, long columns, int base) {
    shift<int64_t, true>(x, w, y, rows, inner, columns, base);
}

// Batches of products lie one behind the other.
void add_narrow(const uint64_t* codes, const int64_t* v, int64_t* y, long batch, long rows, long inner, long columns) {
    const long words = (inner + 63) / 64;
    for (long b = 0; b < batch; b++) {
        add<int64_t, int32_t>(codes + b * rows * words, v + b * inner * columns, y + b * rows * columns, rows, inner,
                              columns);
    }
}

void add_wide(const uint64_t* codes, const int64_t* v, int64_t* y, long batch, long rows, long inner, long columns) {
    const long words = (inner + 63) / 64;
    for (long b = 0; b < batch; b++) {
        add<int64_t, int64_t>(codes + b * rows * words, v + b * inner * columns, y + b * rows * columns, rows, inner,
                              columns);
    }
}

}  // extern "C"
