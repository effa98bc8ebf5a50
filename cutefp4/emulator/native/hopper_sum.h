/* The sum of one Hopper tensor-core instruction, bit for bit (fitted to, and checked against, an H200).
 *
 * d = c + sum_k a_k b_k over all K of the instruction: products are exact; E is the largest exponent among c and the
 * products (a product's exponent is the sum of its operands' exponents, subnormals not normalised; zeros are ignored);
 * every term is truncated toward zero to a multiple of 2^(E - fraction); the truncated terms are added exactly and the
 * sum is truncated toward zero to out_bits significant bits. fraction is 25, or 13 for fp8 with out_bits 14.
 */
#ifndef CUTEFP4_HOPPER_SUM_H
#define CUTEFP4_HOPPER_SUM_H

#include "formats.h"

/* Operands as in matmul_panels. a_type and b_type give the least exponents; out_bits 53 leaves the sum as it is. */
EXPORT void hopper_sum(int m, int n, int k, const double *a, int a_type, const double *b, int b_type, double *c, int ldc,
                       int fraction, int out_bits);

#endif
