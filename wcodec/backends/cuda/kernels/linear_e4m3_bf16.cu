// Products of e4m3 weights with bf16 factors.
#include "linear.cuh"

typedef WeightsE4m3 WEIGHTS;
typedef Bf16 FLOAT;

LINEARS(linear_e4m3_bf16_raw_8, linear_e4m3_bf16_raw_16, linear_e4m3_bf16_raw_32,
        linear_e4m3_bf16_raw_64, linear_e4m3_bf16_coded_8, linear_e4m3_bf16_coded_16,
        linear_e4m3_bf16_coded_32, linear_e4m3_bf16_coded_64)
