/* A QEMU plugin that counts the AArch64 instructions a program executes, by class.
 *
 *   qemu-aarch64 -plugin counter.so,out=FILE PROGRAM ...
 *
 * Each time the program calls getpgid(MARK), and at its end, one line of JSON is written: the counts since its start. Classes do
 * not overlap and their sum is the total. Counters are incremented without locks: the program has to have one thread.
 * The header of QEMU's plugin interface (version 1) is not packaged everywhere, so what is used of it is declared here.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t plugin_id;
typedef struct qemu_plugin_tb block;
typedef struct qemu_plugin_insn instruction;
typedef void (*translated_cb)(plugin_id, block *);
typedef void (*syscall_cb)(plugin_id, unsigned vcpu, int64_t number, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                           uint64_t, uint64_t, uint64_t);
typedef void (*exit_cb)(plugin_id, void *);

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, translated_cb);
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id, syscall_cb);
extern void qemu_plugin_register_atexit_cb(plugin_id, exit_cb, void *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(block *, int operation, void *counter, uint64_t amount);
extern size_t qemu_plugin_tb_n_insns(const block *);
extern instruction *qemu_plugin_tb_get_insn(const block *, size_t);
extern const void *qemu_plugin_insn_data(const instruction *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum { INLINE_ADD = 0, GETPGID = 155, MARK = 0x70616d };
enum { FMLA, IMLA, SIMD, SIMD_MEMORY, MEMORY, BRANCH, INTEGER, CLASSES };

static const char *const names[CLASSES] = {"fmla", "imla", "simd", "simd_memory", "memory", "branch", "integer"};
static uint64_t counts[CLASSES];
static FILE *out;

static int matches(uint32_t word, uint32_t mask, uint32_t value) { return (word & mask) == value; }

static int class_of(uint32_t word) {
  if (matches(word, 0xbfa0fc00, 0x0e20cc00) || matches(word, 0xbf80f400, 0x0f801000)) return FMLA; /* vector, by element */
  if (matches(word, 0x9fe0fc00, 0x0e809400) || matches(word, 0x9fc0f400, 0x0f80e000) || /* sdot, udot */
      matches(word, 0x9f20fc00, 0x0e208000) || matches(word, 0x9f00f400, 0x0f002000) || /* smlal, umlal */
      matches(word, 0xbf20fc00, 0x0e209400) || matches(word, 0xbf00f400, 0x2f000000))   /* mla */
    return IMLA;
  uint32_t group = word >> 25 & 15; /* bits 28 to 25: the top level of the encoding */
  if ((group & 7) == 7) return SIMD;
  if ((group & 5) == 4) return word >> 26 & 1 ? SIMD_MEMORY : MEMORY;
  if ((group & 14) == 10) return BRANCH;
  return INTEGER;
}

static void on_translation(plugin_id id, block *tb) {
  uint64_t found[CLASSES] = {0};
  size_t n = qemu_plugin_tb_n_insns(tb);
  for (size_t i = 0; i < n; i++) {
    uint32_t word;
    memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), sizeof word);
    found[class_of(word)]++;
  }
  for (int c = 0; c < CLASSES; c++)
    if (found[c]) qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD, &counts[c], found[c]);
}

static void report(void) {
  uint64_t total = 0;
  for (int c = 0; c < CLASSES; c++) total += counts[c];
  fprintf(out, "{\"total\": %" PRIu64, total);
  for (int c = 0; c < CLASSES; c++) fprintf(out, ", \"%s\": %" PRIu64, names[c], counts[c]);
  fprintf(out, "}\n");
  fflush(out);
}

static void on_syscall(plugin_id id, unsigned vcpu, int64_t number, uint64_t first, uint64_t a2, uint64_t a3, uint64_t a4,
                       uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  if (number == GETPGID && first == MARK) report();
}

static void on_exit(plugin_id id, void *data) { report(); }

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
  if (argc != 1 || strncmp(argv[0], "out=", 4) || !(out = fopen(argv[0] + 4, "w"))) {
    fprintf(stderr, "counter: needs out=FILE that can be written\n");
    return 1;
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
  qemu_plugin_register_atexit_cb(id, on_exit, NULL);
  return 0;
}
