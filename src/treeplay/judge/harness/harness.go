package main

import (
	"os"
	"strings"
)

var treeplayNonce = treeplayStart()

func treeplayStart() string {
	nonce := ""
	one := make([]byte, 1)
	for len(nonce) < 80 {
		n, err := os.Stdin.Read(one)
		if err != nil || n != 1 || one[0] == '\n' {
			break
		}
		nonce += string(one)
	}
	os.Stdin.Close()
	os.NewFile(3, "result").WriteString(nonce + " START \n")
	return nonce
}

// treeplaySay never returns.
func treeplaySay(word, text string) {
	if len(text) > 2000 {
		text = text[:2000]
	}
	text = strings.ReplaceAll(text, "\n", "\x1f")
	os.NewFile(3, "result").WriteString(treeplayNonce + " " + word + " " + text + "\n")
	os.Exit(0)
}

func exploited(msg string) {
	treeplaySay("EXPLOITED", msg)
}

func check(cond bool, msg string) {
	if !cond {
		treeplaySay("FAIL", "check: "+msg)
	}
}

func main() {
	runTests()
	treeplaySay("PASS", "")
}
