/* What comes in: documents of `rank` from arguments, files, folders and standard input; lines of JSON; lines as they arrive. */
#ifndef QR_CLI_INPUT_H
#define QR_CLI_INPUT_H

#include "base/file.h"
#include "base/json_in.h"
#include "cli/cli.h"

typedef struct cli_doc {
    qr_text text;       /* borrowed from a source or from `json` */
    const char *source; /* "notes.txt", "stdin", "doc"; borrowed */
    const char *id;     /* from JSON lines, or NULL; borrowed from `json` or owned by the sources */
    size_t line;        /* from 1; 0: the document is the whole source */
    json_t *json;       /* owned, or NULL */
    int replaced;
} cli_doc;

typedef struct cli_source { /* owns the bytes of documents */
    char *name;
    qr_file file; /* mapped, or */
    char *block;  /* read */
} cli_source;

typedef struct cli_docs {
    cli_doc *items; /* [n] */
    size_t n, capacity;
    cli_source **sources; /* [n_sources] */
    size_t n_sources, sources_capacity;
    size_t n_hidden, n_binary, n_special; /* left out of folders */
    size_t n_unreadable;                  /* in folders: reported and left out */
} cli_docs;

/* Collects the documents of --doc and of the operands from the second on. Reports errors itself, returns an exit code. A file that is named
 * and cannot be read is an error; one inside a folder is reported and left out. Free with cli_docs_deinit in all cases. */
int cli_docs_read(cli_docs *docs, const cli_args *args);
void cli_docs_deinit(cli_docs *docs);
/* "notes.txt:3", or the id; written to out[0..size). */
void cli_doc_name(const cli_doc *doc, char *out, size_t size);

/* Reads a descriptor to its end, at most max_bytes. *block is freed with qr_free. */
qr_status cli_read_all(int fd, const char *name, size_t max_bytes, char **block, size_t *len, qr_error *err);

/* Lines from a descriptor as they arrive. All zero but fd and max_line at the start. */
typedef struct cli_reader {
    int fd;
    size_t max_line; /* bytes; a longer line is skipped without being held */
    char *buffer;
    size_t begin, scanned, end, capacity;
    int eof, skipping;
} cli_reader;
typedef enum cli_line { CLI_LINE, CLI_LINE_TOO_LONG, CLI_LINE_LATER, CLI_LINE_END, CLI_LINE_FAILED } cli_line;
/* The next line without its end, valid until the next call. LATER: none is complete and, wait being 0, none can be had without waiting.
 * FAILED: errno says why. */
cli_line cli_reader_next(cli_reader *reader, int wait, const char **line, size_t *len);
void cli_reader_deinit(cli_reader *reader);

/* A line {"query": ..., "document": ..., "instruction"?: ..., "max_length"?: N}. */
typedef struct cli_pair {
    json_t *json; /* owns the texts; the caller ends with json_decref, also after an error */
    qr_text query, instruction, document;
    int has_instruction, replaced;
    size_t max_length; /* 0: not given */
} cli_pair;
qr_status cli_pair_parse(cli_pair *pair, const char *line, size_t len, qr_error *err);
/* Whether the two can be documents of one query. */
int cli_pair_same_query(const cli_pair *a, const cli_pair *b);
/* That query, without documents yet. */
qr_query cli_pair_query(const cli_pair *pair, const qr_text *documents);

#endif
