#include <libxml/parser.h>
#include <libxml/tree.h>
#include <stdio.h>

/* Lists the children of the root element. */
int main(int argc, char **argv)
{
    xmlDocPtr doc;
    xmlNodePtr node;

    if (argc != 2)
        return 2;
    doc = xmlReadFile(argv[1], NULL, XML_PARSE_NOENT | XML_PARSE_DTDLOAD);
    if (doc == NULL)
        return 1;
    node = xmlDocGetRootElement(doc);
    for (node = node ? node->children : NULL; node != NULL; node = node->next)
        if (node->type == XML_ELEMENT_NODE)
            printf("%s\n", (const char *)node->name);
    xmlFreeDoc(doc);
    xmlCleanupParser();
    return 0;
}
