/* What an engine does with the library: list, decode, compute from packed tiles; and what it is told when it errs. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "waterfill.h"

#define CHECK(condition)                                                                    \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            fprintf(stderr, "line %d: %s; last: %s\n", __LINE__, #condition, wf_last_error()); \
            exit(1);                                                                        \
        }                                                                                   \
    } while (0)

static int32_t stop_at_once(size_t done, size_t all, void *user) {
    (void)all;
    *(size_t *)user = done;
    return 1;
}

static float bf16(const uint8_t *b) {
    uint32_t bits = (uint32_t)(b[0] | b[1] << 8) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Bits of element i in a plane of so many bits. */
static int part(const uint8_t *plane, size_t i, int bits) {
    return plane[i * bits / 8] >> (i * bits % 8) & ((1 << bits) - 1);
}

/* A number without sign from planes of a, b and c bits. */
static int number(const uint8_t *tile, size_t i, int a, int b, int c) {
    int all = part(tile, i, a);
    if (b) all |= part(tile + 32 * a, i, b) << a;
    if (c) all |= part(tile + 32 * (a + b), i, c) << (a + b);
    return all;
}

/* A level from planes of a, b and c bits, in two's complement. */
static float level(const uint8_t *tile, size_t i, int a, int b, int c) {
    int bits = a + b + c, all = number(tile, i, a, b, c);
    return (float)(all < 1 << (bits - 1) ? all : all - (1 << bits));
}

/* A weight from its bucket, before scales; FP8 is left to the library's other functions. */
static int code_of(const struct WfBucket *bucket, size_t tile, size_t i, float *value) {
    const uint8_t *data = bucket->data + tile * (bucket->bytes / bucket->tiles);
    switch (bucket->format) {
    case WF_FORMAT_INT2: *value = level(data, i, 2, 0, 0); return 1;
    case WF_FORMAT_INT3: *value = level(data, i, 2, 1, 0); return 1;
    case WF_FORMAT_INT4: *value = level(data, i, 4, 0, 0); return 1;
    case WF_FORMAT_INT5: *value = level(data, i, 4, 1, 0); return 1;
    case WF_FORMAT_INT6: *value = level(data, i, 4, 2, 0); return 1;
    case WF_FORMAT_INT7: *value = level(data, i, 4, 2, 1); return 1;
    case WF_FORMAT_INT8: *value = level(data, i, 8, 0, 0); return 1;
    case WF_FORMAT_PLAIN: *value = bf16(data + 2 * i); return 1;
    default: return 0;
    }
}

/* Bits of a code of a trellis; 0 in other formats. */
static int code_bits(const struct WfBucket *bucket) {
    int format = bucket->format;
    return format < WF_FORMAT_TRELLIS1 || format > WF_FORMAT_TRELLIS8 ? 0 : format - WF_FORMAT_TRELLIS1 + 1;
}

/* Moves the states of the 16 columns of a tile by its codes, and puts their levels where they are wanted. */
static void follow(const struct WfBucket *bucket, size_t tile, uint32_t state_bits, uint32_t *states, float *levels) {
    static const int planes[9][3] = {{0},       {1, 0, 0}, {2, 0, 0}, {2, 1, 0}, {4, 0, 0},
                                     {4, 1, 0}, {4, 2, 0}, {4, 2, 1}, {8, 0, 0}};
    int bits = code_bits(bucket);
    const int *p = planes[bits];
    const uint8_t *data = bucket->data + tile * (bucket->bytes / bucket->tiles);
    for (size_t i = 0; i < 256; i++) {
        uint32_t *state = &states[i % 16];
        *state = (*state << bits | (uint32_t)number(data, i, p[0], p[1], p[2])) & ((1u << state_bits) - 1);
        if (levels) levels[i] = (float)wf_trellis_level(*state);
    }
}

/* Whether a bucket has the tile of a row of tiles and a column of tiles. */
static int has(const struct WfBucket *bucket, size_t across, size_t down, size_t column) {
    return bucket->occupied[down * ((across + 7) / 8) + column / 8] >> (column % 8) & 1;
}

/* States before a tile: those after the one above it, which may be in any bucket. Its own codes suffice, as they have at
   least as many bits as a state. */
static void states_before(const struct WfPacked *packed, const struct WfPackedInfo *info, size_t down, size_t column,
                          uint32_t *states) {
    size_t across = (info->cols + 15) / 16;
    memset(states, 0, 16 * sizeof *states);
    if (down % info->trellis_restart == 0) return;
    for (size_t b = 0; b < info->buckets; b++) {
        struct WfBucket bucket;
        CHECK(wf_packed_bucket(packed, b, &bucket) == WF_STATUS_OK);
        if (!code_bits(&bucket) || !has(&bucket, across, down - 1, column)) continue;
        size_t tile = bucket.row_starts[down - 1];
        for (size_t c = 0; c < column; c++) tile += has(&bucket, across, down - 1, c);
        follow(&bucket, tile, info->trellis_state_bits, states, NULL);
    }
}

static size_t compare(const struct WfCheckpoint *checkpoint, const char *name, const float *dense) {
    struct WfPacked *packed = NULL;
    struct WfPackedInfo info;
    CHECK(wf_decode_packed(checkpoint, name, &packed, NULL, NULL) == WF_STATUS_OK);
    CHECK(wf_packed_info(packed, &info) == WF_STATUS_OK && info.dtype == WF_DTYPE_BF16);
    if (strcmp(name, "c") == 0) CHECK(info.trellis_state_bits == 12 && info.trellis_restart == 16 && info.buckets == 9);
    else CHECK(info.trellis_state_bits == 0 && info.trellis_restart == 0);
    size_t compared = 0;
    for (size_t b = 0; b < info.buckets; b++) {
        struct WfBucket bucket;
        CHECK(wf_packed_bucket(packed, b, &bucket) == WF_STATUS_OK);
        CHECK((uintptr_t)bucket.data % 128 == 0);
        size_t across = (info.cols + 15) / 16, t = 0;
        for (size_t place = 0; place < (info.rows + 15) / 16 * across; place++) {
            size_t down = place / across, column = place % across;
            if (column == 0) CHECK(t == bucket.row_starts[down]);
            if (has(&bucket, across, down, column)) {
                float levels[256] = {0};
                int bits = code_bits(&bucket);
                if (bits) {
                    uint32_t states[16];
                    states_before(packed, &info, down, column, states);
                    follow(&bucket, t, info.trellis_state_bits, states, levels);
                }
                for (size_t i = 0; i < 256; i++) {
                    size_t row = down * 16 + i / 16, col = column * 16 + i % 16;
                    float value;
                    if (row >= info.rows || col >= info.cols) continue;
                    if (bits) value = levels[i];
                    else if (!code_of(&bucket, t, i, &value)) continue;
                    if (bucket.scales) {
                        int quarters = (info.row_scales ? info.row_scales[row] : 0) + (info.col_scales ? info.col_scales[col] : 0);
                        value *= wf_scale(bucket.scale + 2 * (bucket.scales[t] + quarters));
                    }
                    float expected = dense[row * info.cols + col];
                    CHECK(fabsf(value - expected) <= fabsf(expected) * (1.0f / 256 + 1e-4f));
                    compared++;
                }
                t++;
            }
        }
    }
    struct WfBucket beyond;
    CHECK(wf_packed_bucket(packed, info.buckets, &beyond) == WF_STATUS_ARGUMENT);
    wf_packed_free(packed);
    return compared;
}

/* A base that arrives first is made finer where it is. */
static void refine(const char *path) {
    struct WfCheckpoint *base = NULL, *all = NULL;
    CHECK(wf_open_prefix(path, 1, 1, &base) == WF_STATUS_ARGUMENT);
    CHECK(wf_open_prefix(path, 0, 1, &base) == WF_STATUS_FILE);
    CHECK(wf_open_prefix(path, 1, 0, &base) == WF_STATUS_OK && wf_layers(base) == 1);
    CHECK(wf_open_prefix(path, 0, 0, &all) == WF_STATUS_OK && wf_layers(all) == 2 && wf_layers(NULL) == 0);
    size_t bytes = 0;
    CHECK(wf_decoded_bytes(all, "a", WF_DTYPE_BF16, &bytes) == WF_STATUS_OK);
    uint8_t *coarse = malloc(bytes), *fine = malloc(bytes);
    CHECK(wf_decode(base, "a", WF_DTYPE_BF16, coarse, bytes, NULL, NULL) == WF_STATUS_OK);
    CHECK(wf_decode(all, "a", WF_DTYPE_BF16, fine, bytes, NULL, NULL) == WF_STATUS_OK);
    CHECK(memcmp(coarse, fine, bytes) != 0);
    CHECK(wf_refine(all, "a", 1, coarse, bytes - 2, NULL, NULL) == WF_STATUS_TENSOR);
    CHECK(wf_refine(all, "a", 1, coarse, bytes, NULL, NULL) == WF_STATUS_OK);
    CHECK(memcmp(coarse, fine, bytes) == 0);
    CHECK(wf_refine(all, "a", 1, coarse, bytes, NULL, NULL) == WF_STATUS_DAMAGED);
    free(coarse);
    free(fine);
    wf_close(base);
    wf_close(all);
}

int main(int count, char **arguments) {
    CHECK(count == 3);
    refine(arguments[2]);
    struct WfCheckpoint *checkpoint = NULL;
    CHECK(wf_open("nowhere/at/all", &checkpoint) != WF_STATUS_OK && strstr(wf_last_error(), "nowhere/at/all"));
    CHECK(wf_open(NULL, &checkpoint) == WF_STATUS_ARGUMENT);
    CHECK(wf_open_bytes((const uint8_t *)"not a file", 10, &checkpoint) == WF_STATUS_FILE);
    CHECK(wf_open(arguments[1], &checkpoint) == WF_STATUS_OK && strlen(wf_last_error()) == 0);
    size_t tensors = wf_tensor_count(checkpoint), compared = 0, coded = 0;
    for (size_t n = 0; n < tensors; n++) {
        struct WfTensorInfo info;
        size_t bytes = 0, last = 99;
        CHECK(wf_tensor_info(checkpoint, n, &info) == WF_STATUS_OK);
        CHECK(wf_decoded_bytes(checkpoint, info.name, WF_DTYPE_F32, &bytes) == WF_STATUS_OK);
        CHECK(bytes == info.weights * 4);
        float *values = malloc(bytes);
        CHECK(wf_decode(checkpoint, info.name, WF_DTYPE_F32, (uint8_t *)values, bytes - 1, NULL, NULL) ==
              WF_STATUS_ARGUMENT);
        CHECK(wf_decode(checkpoint, info.name, WF_DTYPE_F32, (uint8_t *)values, bytes, stop_at_once, &last) ==
              WF_STATUS_CANCELLED);
        /* Other threads may be in the middle of a part. */
        CHECK(last >= 1 && last < 99);
        CHECK(wf_decode(checkpoint, info.name, WF_DTYPE_F32, (uint8_t *)values, bytes, NULL, NULL) == WF_STATUS_OK);
        if (info.coded) {
            compared += compare(checkpoint, info.name, values);
            coded++;
        }
        free(values);
    }
    struct WfTensorInfo beyond;
    CHECK(wf_tensor_info(checkpoint, tensors, &beyond) == WF_STATUS_ARGUMENT);
    size_t bytes;
    CHECK(wf_decoded_bytes(checkpoint, "a", 7, &bytes) == WF_STATUS_ARGUMENT);
    CHECK(wf_decoded_bytes(checkpoint, "no.such.tensor", WF_DTYPE_F32, &bytes) == WF_STATUS_TENSOR);
    CHECK(strstr(wf_last_error(), "no.such.tensor"));
    wf_close(checkpoint);
    wf_close(NULL);
    printf("%zu tensors, %zu coded, %zu weights compared\n", tensors, coded, compared);
    return 0;
}
