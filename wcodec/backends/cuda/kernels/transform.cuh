// One-dimensional integer transforms of eight values by lifting, modulo 256 (spec: chapter 8). A
// lifting step adds to one value a rounded multiple of another one, so it is undone by subtracting
// the same.
#pragma once
#include "common.cuh"

enum { SIZE = 8, FRACTION = 7 };  // SIZE: values; FRACTION: bits after the point of coefficients

// Three lifting steps: y[a] += p y[b], y[b] += u y[a], y[a] += r y[b].
struct Lifting {
    int a, b, p, u, r;
};

// Coefficient k, counted from the lowest frequency, is value ORDER >> 4 k & 15 after all steps.
template <u32 TRANSFORM>
struct Steps;

template <>
struct Steps<TRANSFORM_DCT> {
    static constexpr u32 COUNT = 13, ORDER = 0x52417360;
    static constexpr Lifting ROWS[COUNT] = {
        {7, 0, -128, 64, 0},  {6, 1, -128, 64, 0}, {5, 2, -128, 64, 0},  {4, 3, -128, 64, 0},
        {3, 0, -128, 64, 0},  {2, 1, -128, 64, 0}, {1, 0, -128, 64, 0},  {3, 2, 25, -49, 25},
        {7, 4, 13, -25, 13},  {6, 5, 39, -71, 39}, {7, 6, -53, 91, -53}, {5, 4, -53, 91, -53},
        {7, 4, -53, 91, -53},
    };
};

template <>
struct Steps<TRANSFORM_ADST> {
    static constexpr u32 COUNT = 15, ORDER = 0x05371246;
    static constexpr Lifting ROWS[COUNT] = {
        {0, 7, -6, 13, -6},   {1, 6, -19, 37, -19}, {2, 5, -32, 60, -32}, {3, 4, -46, 81, -46},
        {0, 3, -53, 91, -53}, {1, 2, -53, 91, -53}, {0, 1, -53, 91, -53}, {3, 2, -25, 49, -25},
        {7, 4, 53, -91, 53},  {6, 5, 53, -91, 53},  {7, 6, -53, 91, -53}, {4, 5, 25, -49, 25},
        {2, 4, -53, 91, -53}, {1, 7, -53, 91, -53}, {3, 5, -53, 91, -53},
    };
};

DEVICE int signed_byte(u32 value) { return (int)(signed char)(u8)value; }

DEVICE int product(int value, int coefficient) {
    return (coefficient * value + (1 << (FRACTION - 1))) >> FRACTION;
}

// The steps from row I on, of an inverse from the last one back. Values are -128 to 127.
template <u32 TRANSFORM, bool INVERSE, u32 I = 0>
DEVICE void lift(int (&y)[SIZE]) {
    if constexpr (I < Steps<TRANSFORM>::COUNT) {
        constexpr Lifting row =
            Steps<TRANSFORM>::ROWS[INVERSE ? Steps<TRANSFORM>::COUNT - 1 - I : I];
        constexpr int sign = INVERSE ? -1 : 1, first = INVERSE ? row.r : row.p,
                      last = INVERSE ? row.p : row.r;
        if constexpr (first != 0)
            y[row.a] = signed_byte((u32)(y[row.a] + sign * product(y[row.b], first)));
        y[row.b] = signed_byte((u32)(y[row.b] + sign * product(y[row.a], row.u)));
        if constexpr (last != 0)
            y[row.a] = signed_byte((u32)(y[row.a] + sign * product(y[row.b], last)));
        lift<TRANSFORM, INVERSE, I + 1>(y);
    }
}

// Values become coefficients, or coefficients become values.
template <u32 TRANSFORM, bool INVERSE>
DEVICE void transform_values(int (&x)[SIZE]) {
    int y[SIZE];
#pragma unroll
    for (u32 k = 0; k < SIZE; ++k) {
        const u32 place = Steps<TRANSFORM>::ORDER >> 4 * k & 7;
        if (INVERSE) y[place] = x[k];
        else y[k] = x[k];
    }
    lift<TRANSFORM, INVERSE>(y);
#pragma unroll
    for (u32 k = 0; k < SIZE; ++k) x[k] = INVERSE ? y[k] : y[Steps<TRANSFORM>::ORDER >> 4 * k & 7];
}
