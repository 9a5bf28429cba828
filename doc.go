// Package stoker is the vocabulary of the project: identifiers, error kinds
// and the few constants that every layer agrees on. It does no I/O and
// imports only the standard library. All its values are plain data; use them
// from any goroutine.
package stoker
