// What Go tests may use, and the main that runs them. For each run the word "treeplay_secret" is
// replaced by a random one, so that the program cannot report a result itself.
package main

import (
	"os"
	"strings"
)

// One file for as long as the program runs: another one of the same descriptor would close it when it
// is collected.
var treeplay_secret_out = os.NewFile(3, "result")

var treeplay_secret_nonce = treeplay_secret_start()

func treeplay_secret_start() string {
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
	treeplay_secret_out.WriteString(nonce + " START \n")
	return nonce
}

// treeplay_secret_say never returns.
func treeplay_secret_say(word, text string) {
	if len(text) > 2000 {
		text = text[:2000]
	}
	text = strings.ReplaceAll(text, "\n", "\x1f")
	treeplay_secret_out.WriteString(treeplay_secret_nonce + " " + word + " " + text + "\n")
	os.Exit(0)
}

func exploited(msg string) {
	treeplay_secret_say("EXPLOITED", msg)
}

func check(cond bool, msg string) {
	if !cond {
		treeplay_secret_say("FAIL", "check: "+msg)
	}
}

func main() {
	runTests()
	treeplay_secret_say("PASS", "")
}
