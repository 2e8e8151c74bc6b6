// Products of e5m2 weights with bf16 factors.
#include "linear.cuh"

typedef WeightsE5m2 WEIGHTS;
typedef Bf16 FLOAT;

LINEARS(linear_e5m2_bf16_raw_8, linear_e5m2_bf16_raw_16, linear_e5m2_bf16_raw_32,
        linear_e5m2_bf16_raw_64, linear_e5m2_bf16_coded_8, linear_e5m2_bf16_coded_16,
        linear_e5m2_bf16_coded_32, linear_e5m2_bf16_coded_64)
