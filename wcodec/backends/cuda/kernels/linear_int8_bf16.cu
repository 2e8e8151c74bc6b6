// Products of int8 weights with bf16 factors.
#include "linear.cuh"

typedef WeightsInt8 WEIGHTS;
typedef Bf16 FLOAT;

LINEARS(linear_int8_bf16_raw_8, linear_int8_bf16_raw_16, linear_int8_bf16_raw_32,
        linear_int8_bf16_raw_64, linear_int8_bf16_coded_8, linear_int8_bf16_coded_16,
        linear_int8_bf16_coded_32, linear_int8_bf16_coded_64)
