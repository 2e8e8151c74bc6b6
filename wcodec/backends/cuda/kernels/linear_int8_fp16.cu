// Products of int8 weights with fp16 factors.
#include "linear.cuh"

typedef WeightsInt8 WEIGHTS;
typedef Fp16 FLOAT;

LINEARS(linear_int8_fp16_raw_8, linear_int8_fp16_raw_16, linear_int8_fp16_raw_32,
        linear_int8_fp16_raw_64, linear_int8_fp16_coded_8, linear_int8_fp16_coded_16,
        linear_int8_fp16_coded_32, linear_int8_fp16_coded_64)
