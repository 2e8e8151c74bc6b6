// Products of e5m2 weights with fp16 factors.
#include "linear.cuh"

typedef WeightsE5m2 WEIGHTS;
typedef Fp16 FLOAT;

LINEARS(linear_e5m2_fp16_raw_8, linear_e5m2_fp16_raw_16, linear_e5m2_fp16_raw_32,
        linear_e5m2_fp16_raw_64, linear_e5m2_fp16_coded_8, linear_e5m2_fp16_coded_16,
        linear_e5m2_fp16_coded_32, linear_e5m2_fp16_coded_64)
