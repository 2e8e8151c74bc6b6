// Products of bf16 weights with bf16 factors.
#include "linear.cuh"

typedef WeightsBf16 WEIGHTS;
typedef Bf16 FLOAT;

LINEARS(linear_bf16_bf16_raw_8, linear_bf16_bf16_raw_16, linear_bf16_bf16_raw_32,
        linear_bf16_bf16_raw_64, linear_bf16_bf16_coded_8, linear_bf16_bf16_coded_16,
        linear_bf16_bf16_coded_32, linear_bf16_bf16_coded_64)
