/* The waterfill decoder for C. Made by cbindgen from crates/capi/src/lib.rs: change it there. */

#ifndef WATERFILL_H
#define WATERFILL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Outcome of a call.
typedef enum WfStatus {
  // Success.
  WF_STATUS_OK = 0,
  // A file cannot be read.
  WF_STATUS_IO = 1,
  // A file is not of the expected form.
  WF_STATUS_FILE = 2,
  // A tensor is missing, or of another type or shape.
  WF_STATUS_TENSOR = 3,
  // A coded tensor is damaged or of another version.
  WF_STATUS_DAMAGED = 4,
  // The callback cancelled the work.
  WF_STATUS_CANCELLED = 5,
  // A null pointer, text that is not UTF-8, an index beyond the end, or a buffer of another size.
  WF_STATUS_ARGUMENT = 6,
  // A fault of this library.
  WF_STATUS_PANIC = 7,
} WfStatus;

// Element type of decoded tensors.
typedef enum WfDtype {
  // bfloat16.
  WF_DTYPE_BF16 = 0,
  // IEEE half precision.
  WF_DTYPE_F16 = 1,
  // IEEE single precision.
  WF_DTYPE_F32 = 2,
} WfDtype;

// Number format of packed tiles.
typedef enum WfFormat {
  // Levels -8 to 7, the lower half of a byte first: 128 bytes a tile.
  WF_FORMAT_INT4 = 0,
  // Levels -127 to 127: 256 bytes.
  WF_FORMAT_INT8 = 1,
  // FP8 E4M3: 256 bytes.
  WF_FORMAT_E4M3 = 2,
  // FP8 E5M2: 256 bytes.
  WF_FORMAT_E5M2 = 3,
  // Elements of the tensor's type, without scales: 512 bytes, or 1024 of F32.
  WF_FORMAT_PLAIN = 4,
  // Levels -2 to 1, element i in bits 2 (i mod 4) and up of byte i / 4: 64 bytes.
  WF_FORMAT_INT2 = 5,
  // Levels -4 to 3: the lower two bits as of Int2, then 32 bytes of signs, that of element i in bit i mod 8 of byte i / 8:
  // 96 bytes.
  WF_FORMAT_INT3 = 6,
  // Levels -16 to 15: the lower four bits as of Int4, then signs as of Int3: 160 bytes.
  WF_FORMAT_INT5 = 7,
  // Levels -32 to 31: the lower four bits as of Int4, then the upper two as of Int2: 192 bytes.
  WF_FORMAT_INT6 = 8,
  // Levels -64 to 63: the lower six bits as of Int6, then signs as of Int3: 224 bytes.
  WF_FORMAT_INT7 = 9,
  // Codes of 1 bit of a trellis: 32 bytes.
  WF_FORMAT_TRELLIS1 = 10,
  // Codes of 2 bits of a trellis: 64 bytes.
  WF_FORMAT_TRELLIS2 = 11,
  // Codes of 3 bits of a trellis: 96 bytes.
  WF_FORMAT_TRELLIS3 = 12,
  // Codes of 4 bits of a trellis: 128 bytes.
  WF_FORMAT_TRELLIS4 = 13,
  // Codes of 5 bits of a trellis: 160 bytes.
  WF_FORMAT_TRELLIS5 = 14,
  // Codes of 6 bits of a trellis: 192 bytes.
  WF_FORMAT_TRELLIS6 = 15,
  // Codes of 7 bits of a trellis: 224 bytes.
  WF_FORMAT_TRELLIS7 = 16,
  // Codes of 8 bits of a trellis: 256 bytes.
  WF_FORMAT_TRELLIS8 = 17,
} WfFormat;

// An open checkpoint.
typedef struct WfCheckpoint WfCheckpoint;

// A matrix in packed tiles.
typedef struct WfPacked WfPacked;

// Called with the parts done and all parts, from any thread; a result other than zero cancels the work.
typedef int32_t (*WfProgress)(uintptr_t done, uintptr_t all, void *user);

// A tensor of a checkpoint; pointers hold until the checkpoint is closed.
typedef struct WfTensorInfo {
  // Name, UTF-8 with a zero at its end.
  const char *name;
  // Its dimensions.
  const uintptr_t *shape;
  // Number of dimensions.
  uintptr_t dims;
  // Weights.
  uint64_t weights;
  // Bytes in the file.
  uint64_t bytes;
  // True for a coded tensor.
  bool coded;
} WfTensorInfo;

// A packed matrix; pointers hold until it is freed.
typedef struct WfPackedInfo {
  // Rows (output features).
  uintptr_t rows;
  // Columns (input features).
  uintptr_t cols;
  // Type of the decoded tensor, and of plain tiles.
  enum WfDtype dtype;
  // Scale of each row in quarter octaves, or null for zeros.
  const int8_t *row_scales;
  // Scale of each column in quarter octaves, or null for zeros.
  const int8_t *col_scales;
  // Number of buckets.
  uintptr_t buckets;
  // Bytes in memory.
  uintptr_t resident_bytes;
  // Bits of a state of the trellis that codes belong to, or 0 without any.
  uint32_t trellis_state_bits;
  // Rows of tiles after which columns start from state 0 again.
  uintptr_t trellis_restart;
} WfPackedInfo;

// Tiles of one format; pointers hold until the matrix is freed. The weight in row r and column c of a tile that is not plain
// is its code times wf_scale(scale + 2 (tile + row + column)) with the scales of its tile, row and column.
//
// Codes of a trellis lie as integers of as many bits do (of one bit as the signs of Int3), without sign. Every column of the
// matrix has a state, 0 before each `trellis_restart`-th row of tiles and after tiles of other formats; a code of b bits makes
// it (state << b | code) mod 2^`trellis_state_bits`, and wf_trellis_level of that stands for the code in the product above. As
// tiles have at least as many bits a column as a state, the state before a tile follows from the tile above it.
typedef struct WfBucket {
  // Their format.
  enum WfFormat format;
  // Number of tiles.
  uintptr_t tiles;
  // Tiles of this bucket before each row of tiles of the matrix, and of all: (rows + 15) / 16 + 1 entries.
  const uint32_t *row_starts;
  // Whether each tile of the matrix is in this bucket, a bit each from the lowest on: column of tiles c of a row of tiles in
  // bit c mod 8 of its byte c / 8. A row of tiles has ((cols + 15) / 16 + 7) / 8 bytes.
  const uint8_t *occupied;
  // Scale of each tile in quarter octaves, or null for plain tiles.
  const int8_t *scales;
  // Scale of the bucket in eighths of an octave.
  int32_t scale;
  // Tile after tile, 16 rows of 16; the first is aligned to 128 bytes.
  const uint8_t *data;
  // Bytes of `data`.
  uintptr_t bytes;
} WfBucket;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Message of the last call on this thread, empty after success. Valid until the next call.
const char *wf_last_error(void);

// Opens a directory or one safetensors file.
//
// # Safety
// `path` ends with a zero; `out` takes the handle, to be closed with [`wf_close`].
enum WfStatus wf_open(const char *path, struct WfCheckpoint **out);

// Opens the first `layers` quality layers of a directory, or what fits into the first `bytes` of all its shards; 0
// means no limit, and at most one of the two may be given.
//
// # Safety
// As [`wf_open`].
enum WfStatus wf_open_prefix(const char *path,
                             uintptr_t layers,
                             uint64_t bytes,
                             struct WfCheckpoint **out);

// Quality layers that are open: 1 for a checkpoint without refinements.
//
// # Safety
// `checkpoint` is null or open.
uintptr_t wf_layers(const struct WfCheckpoint *checkpoint);

// Refines a tensor in place: `data` holds what its first `layers` quality layers decode to, in its own type, and
// receives what all open layers decode to. After an error it must not be used.
//
// # Safety
// `checkpoint` is open, `name` ends with a zero, `data` has `bytes` bytes that nobody else uses meanwhile.
enum WfStatus wf_refine(const struct WfCheckpoint *checkpoint,
                        const char *name,
                        uintptr_t layers,
                        uint8_t *data,
                        uintptr_t bytes,
                        WfProgress progress,
                        void *user);

// Opens the bytes of one safetensors file, which are copied.
//
// # Safety
// `data` has `length` bytes; `out` takes the handle, to be closed with [`wf_close`].
enum WfStatus wf_open_bytes(const uint8_t *data, uintptr_t length, struct WfCheckpoint **out);

// Closes a checkpoint; null is left alone.
//
// # Safety
// `checkpoint` comes from this library and is not used again.
void wf_close(struct WfCheckpoint *checkpoint);

// Number of tensors.
//
// # Safety
// `checkpoint` is null or open.
uintptr_t wf_tensor_count(const struct WfCheckpoint *checkpoint);

// Tensor `index` in the order of names.
//
// # Safety
// `checkpoint` is open; `out` receives the description.
enum WfStatus wf_tensor_info(const struct WfCheckpoint *checkpoint,
                             uintptr_t index,
                             struct WfTensorInfo *out);

// Bytes of a tensor decoded by [`wf_decode`] to a [`WfDtype`].
//
// # Safety
// `checkpoint` is open, `name` ends with a zero, `out` receives the number.
enum WfStatus wf_decoded_bytes(const struct WfCheckpoint *checkpoint,
                               const char *name,
                               uint32_t dtype,
                               uintptr_t *out);

// Decodes a tensor to row-major little-endian elements of a [`WfDtype`].
//
// # Safety
// `checkpoint` is open, `name` ends with a zero, `out` has `length` bytes that nothing else uses meanwhile;
// `progress` is null or takes calls from any thread with `user`.
enum WfStatus wf_decode(const struct WfCheckpoint *checkpoint,
                        const char *name,
                        uint32_t dtype,
                        uint8_t *out,
                        uintptr_t length,
                        WfProgress progress,
                        void *user);

// Decodes a matrix to tiles to multiply with.
//
// # Safety
// As [`wf_decode`]; `out` receives the handle, to be freed with [`wf_packed_free`].
enum WfStatus wf_decode_packed(const struct WfCheckpoint *checkpoint,
                               const char *name,
                               struct WfPacked **out,
                               WfProgress progress,
                               void *user);

// Describes a packed matrix.
//
// # Safety
// `packed` is a matrix that was not freed; `out` receives the description.
enum WfStatus wf_packed_info(const struct WfPacked *packed, struct WfPackedInfo *out);

// Bucket `index` of a packed matrix.
//
// # Safety
// As [`wf_packed_info`].
enum WfStatus wf_packed_bucket(const struct WfPacked *packed,
                               uintptr_t index,
                               struct WfBucket *out);

// Frees a packed matrix; null is left alone.
//
// # Safety
// `packed` comes from this library and is not used again.
void wf_packed_free(struct WfPacked *packed);

// The factor 2^(k/8) of a scale of k eighths of an octave; a quarter octave of a row or column is two of them.
float wf_scale(int32_t k);

// The level of a state of a trellis.
int32_t wf_trellis_level(uint32_t state);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* WATERFILL_H */
